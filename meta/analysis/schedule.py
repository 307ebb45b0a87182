"""Learning-rate schedules: how the rate and the state drift with time alone."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import optimize

from lopt_keras.types import Array
from lopt_keras.validation import check_integer
from meta.analysis.dynamics import Dynamics


class Drift(NamedTuple):
    """A rule under noise of one size, without a signal, from its first step on.

    Attributes:
        steps: `[T]`, times, from 0.
        states: `[T, size]` after each step.
        offsets: `[T]`, the mean step, which is the rule's bias.
        rates: `[T]`: minus the difference of the steps for `+s` and `-s`, over 2 s, s being the
            size of the noise: the instantaneous learning rate for a typical gradient.
    """

    steps: np.ndarray
    states: np.ndarray
    offsets: np.ndarray
    rates: np.ndarray

    @property
    def peak(self) -> int:
        """The step with the largest rate."""
        return int(np.argmax(self.rates))


class Fit(NamedTuple):
    """The shape of a schedule.

    Attributes:
        shape: one of `SHAPES`.
        rate: at the first of the steps that were fitted.
        time: the parameter of the shape, in steps; NaN of a constant.
        error: root mean square of the differences, over the root mean square of the rates.
        errors: the same for each shape, dict.
    """

    shape: str
    rate: float
    time: float
    error: float
    errors: dict


Shape: TypeAlias = Callable[[Array, float], Array]
"""From steps `[T]` and a time to rates `[T]`, 1 at step 0."""

SHAPES: dict[str, Shape] = {
    "constant": lambda t, d: np.ones_like(t),
    "linear decay to 0 at T": lambda t, d: np.maximum(1.0 - t / d, 0.0),
    "cosine to 0 at T": lambda t, d: 0.5 * (1.0 + np.cos(np.pi * np.minimum(t / d, 1.0))),
    "1 / (1 + t / T)": lambda t, d: 1.0 / (1.0 + t / d),
    "1 / sqrt(1 + t / T)": lambda t, d: 1.0 / np.sqrt(1.0 + t / d),
    "exp(-t / T)": lambda t, d: np.exp(-t / d),
}
"""Schedules by name: functions of the steps and one time."""

_LONGEST = 1e3
_SIMPLER = 1.05
# Relative: a rate that changes less is constant.
_NO_CHANGE = 1e-3


def drift(dynamics: Dynamics, num_steps: int) -> Drift:
    """The `Drift` of a rule: its mean map under noise, time going on.

    Args:
        dynamics: `Dynamics`, with noise. It may be told a horizon; its `step` plays no role.
        num_steps: T.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """
    check_integer("num_steps", num_steps, low=2)
    if not dynamics.noise > 0:
        raise ValueError(f"`noise` must be positive. Received: noise={dynamics.noise}")
    quiet, noise = dynamics.at(noise=0.0), dynamics.noise
    steps = np.arange(num_steps)
    states, offsets = dynamics.run(np.zeros(num_steps), steps=steps)
    before = np.concatenate([dynamics.start()[None], states[:-1]])
    both = [quiet(before, sign * noise, steps)[1] for sign in (1.0, -1.0)]
    rates = (both[1].astype("float64") - both[0]) / (2.0 * noise)
    return Drift(steps, states, offsets, rates)


def fit(steps: Array, rates: Array) -> Fit:
    """The simplest of `SHAPES` that fits a schedule about as well as the best.

    Args:
        steps: `[T]`, from the one on where the rate begins to fall.
        rates: `[T]`, positive.

    Raises:
        ValueError: if there are fewer than 4 rates, or they are not finite and positive.
    """
    steps, rates = np.asarray(steps, "float64"), np.asarray(rates, "float64")
    if len(rates) < 4 or not np.isfinite(rates).all() or not rates.max() > 0:
        raise ValueError(f"`rates` must be 4 or more finite, positive numbers. Received: {rates}")
    fits = {name: _fit_shape(shape, steps, rates) for name, shape in SHAPES.items()}
    errors = {name: found[2] for name, found in fits.items()}
    lowest = min(errors.values())
    # The first that is as good: the constant before those with a parameter.
    name = next(name for name, x in errors.items() if x <= _SIMPLER * lowest + 1e-6)
    name = "constant" if errors["constant"] < _NO_CHANGE else name
    scale, time, error = fits[name]
    first = scale * SHAPES[name](steps[:1], time)[0]
    return Fit(name, float(first), float(time), float(error), errors)


def _fit_shape(shape: Shape, steps: Array, rates: Array) -> tuple[float, float, float]:
    """Scale, time and relative error of the best fit by least squares."""
    span = max(steps[-1] - steps[0], 1.0)

    def scaled(logarithm: float) -> Array:
        values = shape(steps, np.exp(logarithm))
        return values * (values @ rates) / max(values @ values, 1e-30)

    def misfit(logarithm: float) -> float:
        return float(np.sqrt(np.mean(np.square(scaled(logarithm) - rates))))

    size = np.sqrt(np.mean(np.square(rates)))
    grid = np.log(span * np.geomspace(1e-3, _LONGEST, 80))
    best = int(np.argmin([misfit(x) for x in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = optimize.minimize_scalar(
        misfit, bounds=bounds, method="bounded", options={"xatol": 1e-8}
    )
    values = shape(steps, np.exp(found.x))
    scale = (values @ rates) / max(values @ values, 1e-30)
    is_constant = np.ptp(values) == 0.0 and np.ptp(rates) == 0.0
    time = np.nan if is_constant or shape is SHAPES["constant"] else np.exp(found.x)
    return scale, time, found.fun / size
