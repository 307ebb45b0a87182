"""Spectra with error bars from measurements, by a trained solver."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from lopt_keras.types import Array, Tensors
from meta.continuation.problem import Problem

SIGNIFICANT = 1e-3
"""A misfit that noise exceeds less often than this contradicts the data."""

_SMALLEST_DEFAULT = 1e-6


class Solution(NamedTuple):
    """Spectra on the solver's grid.

    Attributes:
        weights: `[N, W]`, integrals of the spectra over the cells: non-negative, of sum 1.
        bars: `[N, W, 2]`: the error of a weight is at most these in 68 and 95 % of cases.
        chi2: `[N]`, mean squared misfit of the data in units of the noise.
        exceeded: `[N]`, the probability that noise alone makes a misfit at least so large.
    """

    weights: np.ndarray
    bars: np.ndarray
    chi2: np.ndarray
    exceeded: np.ndarray


def solve(
    solver: keras.Model, kernel: Array, correlations: Array, noise: Any, jit: bool = False
) -> Solution:
    """The learned answer to measurements with the same kernel and noise.

    Args:
        solver: `UnrolledSolver`.
        kernel: K, `[T, W]`.
        correlations: G, `[N, T]` or `[T]`, with `G = K p + noise`.
        noise: standard deviation, or one for each time, `[T]`, or the covariance, `[T, T]`.
        jit: as of `run`.

    Returns:
        `Solution`; N is 1 for one correlation function.

    Raises:
        TypeError, ValueError: naming the argument, what was received and what is expected.
    """
    correlations = np.atleast_2d(np.asarray(correlations, np.float64))
    problems = Problem.all_of(kernel, correlations, noise)
    if problems[0].v.shape[0] != solver.num_frequencies:
        raise ValueError(
            f"`kernel` must have {solver.num_frequencies} columns, the solver's frequencies. "
            f"Received: {problems[0].v.shape[0]}"
        )
    weights, bars = run(solver, inputs(problems), jit)
    weights, bars = (x.numpy()[0].astype(np.float64) for x in (weights, bars))
    # To five digits they are of sum 1 already: a float32 softmax.
    weights /= weights.sum(axis=1, keepdims=True)
    chi2 = np.array([p.chi2(w) for p, w in zip(problems, weights, strict=True)])
    return Solution(weights, bars, chi2, exceedance(chi2, problems[0].size))


def inputs(problems: Sequence[Problem]) -> Tensors:
    """The solver's inputs for `Problem`s that share a kernel and a noise."""
    s = np.array([problem.singular_values for problem in problems], np.float32)
    b = np.array([problem.b for problem in problems], np.float32)
    return {
        "singular_values": tf.constant(s[None]),
        "data": tf.constant(b[None]),
        "basis": tf.constant(problems[0].v[None], tf.float32),
    }


def run(solver: keras.Model, inputs: Tensors, jit: bool = False) -> Any:
    """The solver as a compiled function, which is made once for each solver.

    Args:
        solver: a model called as `UnrolledSolver`.
        inputs: of the solver.
        jit: whether XLA compiles it. That takes seconds, again for each shape of the inputs, and
            pays for many spectra.
    """
    name = "jitted_call" if jit else "traced_call"
    if not hasattr(solver, name):
        options = {"jit_compile": True} if jit else {"reduce_retracing": True}
        setattr(solver, name, tf.function(solver.call, autograph=False, **options))
    return getattr(solver, name)(inputs)


def exceedance(chi2: Array | float, size: int) -> Array:
    """The probability that the mean square of so many standard normal numbers is larger."""
    return stats.chi2.sf(np.asarray(chi2) * size, size)


def as_default(weights: Array, blur: float) -> Array:
    """A spectrum as a default model: blurred, as it must not be sharper than the data justify.

    Args:
        weights: `[W]` or `[N, W]`.
        blur: standard deviation of a Gaussian, in cells.

    Returns:
        Positive weights of sum 1.
    """
    weights = np.asarray(weights, np.float64)
    size = weights.shape[-1]
    places = np.arange(size)
    window = np.exp(-0.5 * np.square((places[:, None] - places) / max(blur, 1e-3)))
    # What is near the ends stays inside.
    blurred = weights @ (window / window.sum(axis=1, keepdims=True))
    return (blurred + _SMALLEST_DEFAULT) / (1.0 + size * _SMALLEST_DEFAULT)
