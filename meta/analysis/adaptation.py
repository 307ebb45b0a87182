"""Learning-rate adaptation: what the step makes of the size of gradients."""

from typing import NamedTuple

import numpy as np

from lopt_keras.types import Array
from meta.analysis.dynamics import Dynamics


class Adaptation(NamedTuple):
    """Steps at steady state against constant gradients of growing size.

    Attributes:
        gradients: `[N]`, positive and growing.
        states: `[N, size]`, where they lead.
        updates: `[N]`, the step in the end, without that of the gradient zero.
        rates: `[N]`: minus the step over the gradient.
        exponent: slope of `log |step|` against `log gradient`: 1 for a step in proportion to
            the gradient, 0 where it does not depend on the gradient's size.
        exponents: the same between neighbours, `[N - 1]`.
    """

    gradients: np.ndarray
    states: np.ndarray
    updates: np.ndarray
    rates: np.ndarray
    exponent: float
    exponents: np.ndarray


def measure(dynamics: Dynamics, gradients: Array, num_steps: int = 2000) -> Adaptation:
    """The `Adaptation` of a rule.

    Args:
        dynamics: `Dynamics`.
        gradients: positive and growing, `[N]`.
        num_steps: steps with a constant gradient until the state is called steady.

    Raises:
        ValueError: if the gradients are not positive and growing, or a step is not finite.
    """
    gradients = np.asarray(gradients, "float64")
    if len(gradients) < 2 or not (gradients[0] > 0 and (np.diff(gradients) > 0).all()):
        raise ValueError(f"`gradients` must be positive and growing. Received: {gradients}")
    states, updates, silent = _settled(dynamics, gradients, num_steps)
    updates = updates - silent
    if not np.isfinite(updates).all():
        raise ValueError(f"A step of {dynamics.subject.name} is not finite.")
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(updates))
    exponents = np.diff(logs) / np.diff(np.log(gradients))
    return Adaptation(
        gradients=gradients,
        states=states,
        updates=updates,
        rates=-updates / gradients,
        exponent=sensitivity(gradients, np.abs(updates)),
        exponents=exponents,
    )


def sensitivity(values: Array, sizes: Array) -> float:
    """The power of one quantity that another grows with: slope of the logarithms.

    Args:
        values: of what is changed, positive `[N]`.
        sizes: of what is measured, positive `[N]`.
    """
    return float(np.polyfit(np.log(values), np.log(np.maximum(sizes, 1e-30)), 1)[0])


def _settled(dynamics: Dynamics, gradients: Array, num_steps: int) -> tuple[Array, Array, float]:
    """States `[N, size]` and steps `[N]` in the end of all gradients, and the step for zero."""
    driven = np.concatenate([gradients, [0.0]])
    states = np.repeat(dynamics.start()[None], len(driven), axis=0)
    updates = np.zeros_like(driven)
    for _ in range(num_steps):
        states, updates = dynamics(states, driven)
    updates = updates.astype("float64")
    return states[:-1], updates[:-1], updates[-1]
