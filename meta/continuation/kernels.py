"""The kernels that take a spectrum to a correlation function in imaginary time."""

import numpy as np

from lopt_keras.types import Array

_NODES = 12


def fermionic(times: Array, frequencies: Array, beta: float) -> Array:
    """`exp(-tau w) / (1 + exp(-beta w))`, for w of both signs; without overflow."""
    exponent = np.minimum(beta * frequencies, 0.0) - times * frequencies
    return np.exp(exponent) / (1.0 + np.exp(-beta * np.abs(frequencies)))


def bosonic(times: Array, frequencies: Array, beta: float) -> Array:
    """`w (exp(-tau w) + exp(-(beta - tau) w)) / (1 - exp(-beta w))`, for w > 0.

    It belongs to the spectrum over the frequency, `A(w) = chi''(w) / (pi w)`, which is even.
    """
    decays = np.exp(-times * frequencies) + np.exp(-(beta - times) * frequencies)
    return frequencies * decays / -np.expm1(-beta * frequencies)


def laplace(times: Array, frequencies: Array, beta: float) -> Array:
    """`exp(-tau w)`, for w > 0: temperature zero. beta only says how far tau reaches."""
    del beta
    return np.exp(-times * frequencies)


KERNELS = {"fermionic": fermionic, "bosonic": bosonic, "laplace": laplace}


def edges(name: str, num_frequencies: int, max_frequency: float) -> Array:
    """The edges of the cells of the grid of frequencies: `[num_frequencies + 1]`.

    Args:
        name: of `KERNELS`; the first frequency is `-max_frequency` for the fermionic one, else 0.
        num_frequencies: cells.
        max_frequency: the last edge.
    """
    lowest = -max_frequency if name == "fermionic" else 0.0
    return np.linspace(lowest, max_frequency, num_frequencies + 1)


def matrix(name: str, times: Array, edges: Array, beta: float) -> Array:
    """The mean of the kernel over each cell: `[T, W]` float64.

    A product with the weights of a spectrum in the cells is the correlation function,
    exactly if the spectrum is constant within each cell. At the cells' middles alone, the
    kernel is wrong by much more than data of five digits.

    Args:
        name: of `KERNELS`.
        times: `[T]`, imaginary times, in [0, beta], in units of one over a frequency.
        edges: `[W + 1]`, increasing.
        beta: inverse temperature.

    Raises:
        ValueError: if there is no kernel of that name.
    """
    if name not in KERNELS:
        raise ValueError(f"`kernel` must be one of {sorted(KERNELS)}. Received: {name!r}")
    times, edges = np.asarray(times, np.float64), np.asarray(edges, np.float64)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    middles, halves = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    frequencies = middles + halves * nodes[:, None]
    values = KERNELS[name](times[:, None, None], frequencies, beta)
    return np.einsum("tqw,q->tw", values, 0.5 * weights)
