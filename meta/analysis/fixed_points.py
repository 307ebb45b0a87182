"""Fixed points of an update rule's state."""

from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array
from lopt_keras.validation import check_integer, check_number
from meta.analysis.dynamics import Dynamics

_INITIAL_DAMPING, _LESS, _MORE = 1e-3, 0.3, 4.0
_MOST_STALLED, _SHORTEST, _STANDING = 8, 1e-7, 1e-14


class FixedPoints(NamedTuple):
    """What was found. Where `F` is the map of `Dynamics`:

    Attributes:
        states: `[K, size]`, the different fixed points, those that most starts led to first.
        speeds: `[K]`, `|h - F(h)|^2 / 2` there.
        counts: `[K]`, how many starts led there.
        slowest: `|h - F(h)|^2 / 2` of the best start, whether it converged or not.
        num_starts: how many starts there were.
    """

    states: np.ndarray
    speeds: np.ndarray
    counts: np.ndarray
    slowest: float
    num_starts: int


def find(
    dynamics: Dynamics,
    starts: Array,
    gradient: float = 0.0,
    tolerance: float = 1e-5,
    num_steps: int = 60,
    same: float = 1e-2,
) -> FixedPoints:
    """Minimises `|h - F(h, g)|^2 / 2` from each start.

    By the method of Levenberg and Marquardt with the exact Jacobian. The published analysis takes
    a thousand steps of Adam; where a decay is 0.999, these stop far from the fixed point.

    Args:
        dynamics: `Dynamics`.
        starts: `[N, size]`, such as states visited in training.
        gradient: g, a number.
        tolerance: a state is a fixed point if `|h - F(h)|` is at most this times `1 + |h|`, and
            so is the next step to it.
        num_steps: of the minimisation.
        same: fixed points closer than this times `1 + |h|` are the same.

    Returns:
        `FixedPoints`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Maheswaranathan et al., arXiv 2011.02159, section 3; Sussillo and Barak, Neural
    Computation 25 (2013).
    """
    starts = np.asarray(starts, "float64")
    if starts.ndim != 2 or starts.shape[1] != dynamics.size or not len(starts):
        raise ValueError(
            f"`starts` must have the shape [N, {dynamics.size}]. Received: {starts.shape}"
        )
    if not np.isfinite(starts).all():
        raise ValueError("`starts` must be finite. Received a NaN or infinity.")
    check_number("tolerance", tolerance, low_open=True)
    check_number("same", same)
    check_integer("num_steps", num_steps, low=1)
    states, speeds, lengths = _minimise(dynamics, starts, gradient, num_steps)
    scale = 1.0 + np.linalg.norm(states, axis=1)
    found = (np.sqrt(2.0 * speeds) <= tolerance * scale) & (lengths <= same * scale)
    kept, kept_speeds, counts = _distinct(states[found], speeds[found], same)
    return FixedPoints(kept, kept_speeds, counts, float(speeds.min()), len(starts))


def along(dynamics: Dynamics, starts: Array, gradients: Array, **kwargs: Any) -> list[FixedPoints]:
    """The fixed points of each of several constant gradients: list of `FixedPoints`.

    Each begins from the starts and from what the gradient before it led to.
    """
    results, before = [], starts[:1]
    for gradient in gradients:
        found = find(dynamics, np.concatenate([starts, before]), gradient, **kwargs)
        # As many starts each time, so that one program serves all.
        before = found.states[:1] if len(found.states) else starts[:1]
        results.append(found)
    return results


def _minimise(
    dynamics: Dynamics, states: Array, gradient: float, num_steps: int
) -> tuple[Array, Array, Array]:
    """The states after the minimisation, their speeds, and how long the last tried step was."""
    free, unread = _variables(dynamics, states, gradient)

    def residuals_of(states: Array) -> Array:
        residuals = states - _mapped(dynamics, states, gradient)
        return np.where(unread, 0.0, residuals)

    residuals = residuals_of(states)
    speeds = _speeds(residuals)
    damping = np.full(len(states), _INITIAL_DAMPING)
    identity = np.eye(dynamics.size)
    lengths, stalled = np.full(len(states), np.inf), 0
    for _ in range(num_steps):
        slopes = identity - dynamics.jacobians(states, gradient)[0].astype("float64")
        slopes = slopes * free * ~unread[:, None]
        gram = np.swapaxes(slopes, 1, 2) @ slopes
        # Relative to each entry's own slope: accumulators differ by orders of magnitude.
        diagonal = np.einsum("nii->ni", gram)
        damped = gram + (damping[:, None] * diagonal + _STANDING)[:, None] * identity
        downhill = np.swapaxes(slopes, 1, 2) @ residuals[:, :, None]
        steps = np.linalg.solve(damped, downhill)[:, :, 0]
        tried = states - steps
        tried_residuals = residuals_of(tried)
        tried_speeds = _speeds(tried_residuals)
        better = tried_speeds < speeds
        states = np.where(better[:, None], tried, states)
        residuals = np.where(better[:, None], tried_residuals, residuals)
        lengths = np.linalg.norm(steps, axis=1)
        speeds = np.where(better, tried_speeds, speeds)
        damping = np.clip(np.where(better, damping * _LESS, damping * _MORE), 1e-12, 1e6)
        stalled = 0 if better.any() else stalled + 1
        if stalled == _MOST_STALLED or (lengths <= _SHORTEST).all():
            break
    states = np.where(unread, _mapped(dynamics, states, gradient), states)
    return states, speeds, lengths


def _variables(dynamics: Dynamics, states: Array, gradient: float) -> tuple[Array, Array]:
    """Which entries of the state are to be found, and which nothing reads: `[size]` booleans.

    What stays as it is whatever happens, such as counts of losses that are not heard, is no
    variable: others depend on it, and it would be a lever to move them. What is written and not
    read, such as the weight of an average, follows from the rest.
    """
    slopes = dynamics.jacobians(states, gradient)[0]
    unread = (slopes == 0.0).all(axis=(0, 1))
    stays = (slopes == np.eye(dynamics.size)).all(axis=(0, 2))
    stays &= (_mapped(dynamics, states, gradient) == states).all(axis=0)
    return ~stays & ~unread, unread


def _mapped(dynamics: Dynamics, states: Array, gradient: float) -> Array:
    return dynamics(states, gradient)[0].astype("float64")


def _speeds(residuals: Array) -> Array:
    speeds = 0.5 * np.sum(np.square(residuals), axis=1)
    return np.where(np.isfinite(speeds), speeds, np.inf)


def _distinct(states: Array, speeds: Array, same: float) -> tuple[Array, Array, Array]:
    """The states without duplicates, the most frequent first, their speeds and counts."""
    found: list[int] = []
    times: list[int] = []
    for i in np.argsort(speeds):
        for j, k in enumerate(found):
            distance = np.linalg.norm(states[i] - states[k])
            if distance <= same * (1.0 + np.linalg.norm(states[k])):
                times[j] += 1
                break
        else:
            found.append(i)
            times.append(1)
    order = np.argsort(-np.asarray(times, int), kind="stable")
    kept, counts = np.asarray(found, int)[order], np.asarray(times, int)[order]
    return states[kept], speeds[kept], counts
