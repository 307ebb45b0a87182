"""Gradient clipping: how the step saturates in the size of one gradient."""

from typing import NamedTuple

import numpy as np

from lopt_keras.types import Array
from meta.analysis.dynamics import Dynamics

_OUTERMOST = 3
_SATURATED = 0.2
_LINEAR = 0.1


class Clipping(NamedTuple):
    """The step as a function of one gradient, from one state.

    Attributes:
        gradients, updates: the curve, `[N]`; the gradients are symmetric about zero.
        offset: the step of the gradient zero.
        slope: minus the slope of the step at zero: the instantaneous learning rate.
        saturations: how far the step moves from its offset at the most negative and at the most
            positive gradient, positive numbers.
        thresholds: the saturations over the slope, on both sides: a rule that clips gradients at
            c has c. Infinite where the step does not saturate.
        linear_range: the largest gradient up to which the step is within 10 % of linear.
        asymmetry: the part of the curve that is even in the gradient, without the offset, over
            the odd one, as norms: 0 where positive and negative gradients are treated alike.
    """

    gradients: np.ndarray
    updates: np.ndarray
    offset: float
    slope: float
    saturations: tuple[float, float]
    thresholds: tuple[float, float]
    linear_range: float
    asymmetry: float


def measure(
    dynamics: Dynamics,
    state: Array,
    scale: float = 1.0,
    decades: tuple[float, float] = (-3.0, 3.0),
    num: int = 60,
) -> Clipping:
    """The `Clipping` of a rule.

    Args:
        dynamics: `Dynamics`. Of a tensor with several entries, all have this gradient.
        state: `[size]`, a typical state.
        scale: a typical size of gradients.
        decades: the smallest and the largest gradient, as powers of ten times the scale.
        num: gradients of each sign.

    Raises:
        ValueError: if the step is not finite, or does not depend on the gradient.
    """
    positive = scale * np.logspace(*decades, num)
    gradients = np.concatenate([-positive[::-1], [0.0], positive])
    states = np.repeat(np.asarray(state)[None], len(gradients), axis=0)
    updates = dynamics(states, gradients)[1].astype("float64")
    if not np.isfinite(updates).all():
        raise ValueError(f"A step of {dynamics.subject.name} is not finite at this state.")
    offset = updates[num]
    down, up = (updates[:num][::-1] - offset), (offset - updates[num + 1 :])
    odd, even = 0.5 * (down + up), 0.5 * (down - up)
    slope = _slope_at_zero(positive, odd)
    if slope == 0.0 or not np.abs(odd).max() > 0:
        raise ValueError(f"The step of {dynamics.subject.name} does not depend on the gradient.")
    saturations = float(down[-1]), float(up[-1])
    lower, upper = (
        float(abs(side[-1] / slope)) if _saturates(positive, side, slope) else np.inf
        for side in (down, up)
    )
    straight = np.abs(odd / (slope * positive) - 1.0) <= _LINEAR
    bent = np.argmin(straight) if not straight.all() else num
    return Clipping(
        gradients=gradients,
        updates=updates,
        offset=float(offset),
        slope=float(slope),
        saturations=saturations,
        thresholds=(lower, upper),
        linear_range=float(positive[max(bent - 1, 0)]),
        asymmetry=float(np.linalg.norm(even) / np.linalg.norm(odd)),
    )


def _slope_at_zero(positive: Array, odd: Array) -> float:
    """From the smallest gradients whose effect is well above rounding."""
    clear = np.abs(odd) > 1e-3 * np.abs(odd).max()
    first = int(np.argmax(clear))
    few = slice(first, first + _OUTERMOST)
    return float(np.sum(odd[few] * positive[few]) / np.sum(np.square(positive[few])))


def _saturates(positive: Array, side: Array, slope: float) -> bool:
    """Whether the curve is flat at its end: its last slope is a fraction of the first."""
    last = (side[-1] - side[-_OUTERMOST]) / (positive[-1] - positive[-_OUTERMOST])
    return abs(last) < _SATURATED * abs(side[-1] / positive[-1]) and abs(last) < abs(slope)
