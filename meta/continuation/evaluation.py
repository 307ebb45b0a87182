"""How good spectra are: errors, peaks, coverage of error bars."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy import signal

from lopt_keras.types import Array
from meta import random
from meta.continuation import kernels, solving, spectra, training

LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)
"""Noise levels of evaluations."""

_PROMINENCE = 0.05


class TestSet(NamedTuple):
    """Measurements of known spectra with one kernel, made on a finer grid than they are solved on.

    Attributes:
        kernel: `[T, W]`.
        truth: weights of the spectra, `[N, W]`.
        correlations: `[N, T]`.
        noise: a number, or the covariance, `[T, T]`.
    """

    kernel: np.ndarray
    truth: np.ndarray
    correlations: np.ndarray
    noise: object


def make(
    num: int,
    noise: Any,
    num_frequencies: int,
    seed: int,
    families: Mapping[str, spectra.Density] | None = None,
    kernel: str = "fermionic",
    reach: float = 80.0,
) -> TestSet:
    """A `TestSet` with 64 times.

    Args:
        num: spectra.
        noise: standard deviation of white noise on G, over the kernel's largest entry.
        num_frequencies: W.
        seed: non-negative int.
        families: as of `spectra.draw`.
        kernel: of `kernels.KERNELS`.
        reach: beta times the largest frequency.
    """
    cells = training.FINE * num_frequencies
    times = np.linspace(0.0, reach, 64)
    coarse, fine = (
        kernels.matrix(kernel, times, kernels.edges(kernel, n, 1.0), reach)
        for n in (num_frequencies, cells)
    )
    seeds = [random.fold_in(random.seed(seed), i) for i in range(2)]
    drawn = spectra.draw(seeds[0], num, cells, families)
    weights = np.asarray(drawn, np.float64)
    noise *= np.abs(coarse).max()
    white = np.asarray(random.normal((num, len(times)), seeds[1]), np.float64)
    truth = spectra.coarsen(weights, num_frequencies).numpy()
    return TestSet(coarse, truth, weights @ fine.T + noise * white, noise)


def relative_errors(answers: Array, truth: Array) -> Array:
    """`|p - q| / |q|` over the last axis."""
    return np.linalg.norm(answers - truth, axis=-1) / np.linalg.norm(truth, axis=-1)


def moved(answers: Array, truth: Array) -> Array:
    """The earth mover's distance, in units of the grid: mean distance of cumulative weights."""
    return np.abs(np.cumsum(answers - truth, axis=-1)).mean(axis=-1)


def peaks(weights: Array) -> Array:
    """Indices of the peaks of a spectrum `[W]`: a twentieth of the highest, and so prominent."""
    # Zeros around it, so that a peak may stand at an end of the grid.
    padded = np.pad(weights, 1)
    least = _PROMINENCE * weights.max()
    return signal.find_peaks(padded, height=least, prominence=least)[0] - 1


def peak_errors(answers: Array, truth: Array) -> Array:
    """Distance of the highest true peak to the nearest peak of the answer, over the grid: `[N]`."""
    width = truth.shape[-1]
    distances = []
    for answer, spectrum in zip(answers, truth, strict=True):
        own, true = peaks(answer), peaks(spectrum)
        highest = true[np.argmax(spectrum[true])]
        distances.append(np.abs(own - highest).min() / width)
    return np.array(distances)


def coverage(answers: Array, bars: Array, truth: Array) -> Array:
    """The fractions of frequencies at which the error is within the bars: `[Q]`."""
    return np.mean(np.abs(answers - truth)[..., None] <= bars, axis=(0, 1))


def figures(answers: Array, truth: Array) -> dict[str, list[float]]:
    """Dict that JSON can hold: medians and quartiles of the errors."""
    own = {
        "relative_error": relative_errors(answers, truth),
        "moved": moved(answers, truth),
        "peak_error": peak_errors(answers, truth),
    }
    return {
        name: [float(x) for x in np.quantile(values, (0.5, 0.25, 0.75))]
        for name, values in own.items()
    }


def of_solver(solver: keras.Model, num: int = 512, seed: int = 2**20) -> dict[str, Any]:
    """What a training ends with: dict from noise level to median error and coverage."""
    results = {}
    for level in LEVELS:
        test = make(num, level, solver.num_frequencies, seed)
        solution = solving.solve(solver, test.kernel, test.correlations, test.noise)
        error = np.median(relative_errors(solution.weights, test.truth))
        covered = coverage(solution.weights, solution.bars, test.truth)
        results[f"{level:g}"] = {"error": float(error), "coverage": covered.tolist()}
    return results
