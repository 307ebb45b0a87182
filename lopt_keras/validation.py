"""Checks of arguments. Errors name the argument, what was received and what is expected."""

import math
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises unless `value` is an integer in `[low, high]`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be in [{low}, {high}]. Received: {name}={value!r}")


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, low_open: bool = False
) -> None:
    """Raises unless `value` is a finite number in `[low, high)`, or `(low, high)` if `low_open`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (low < value < high or (value == low and not low_open)):
        interval = f"{'(' if low_open else '['}{low}, {high})"
        raise ValueError(f"`{name}` must be in {interval}. Received: {name}={value!r}")


def check_bool(name: str, value: Any) -> None:
    """Raises unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool. Received: {name}={value!r}")


def check_decay_field(rule: Any, name: str) -> None:
    """Makes a field of a rule a tuple of floats; raises unless each is in [0, 1)."""
    value = getattr(rule, name)
    if isinstance(value, str) or not np.iterable(value):
        raise TypeError(f"`{name}` must be a sequence of numbers. Received: {name}={value!r}")
    value = tuple(value)
    if not value:
        raise ValueError(f"`{name}` must hold at least one decay. Received: {name}={value!r}")
    for decay in value:
        check_number(name, decay, high=1.0)
    object.__setattr__(rule, name, tuple(float(decay) for decay in value))


def check_decay_counts(rule: Any) -> None:
    """Checks `rms_decays` and `factored_decays` of a rule, against its `momentum_decays`."""
    check_decay_field(rule, "rms_decays")
    check_decay_field(rule, "factored_decays")
    momenta = len(rule.momentum_decays)
    if len(rule.rms_decays) not in (1, momenta):
        raise ValueError(
            f"`rms_decays` must hold 1 or {momenta} decays (as many as `momentum_decays`). "
            f"Received: rms_decays={rule.rms_decays}"
        )
    if len(rule.factored_decays) != momenta:
        raise ValueError(
            f"`factored_decays` must hold {momenta} decays (as many as `momentum_decays`). "
            f"Received: factored_decays={rule.factored_decays}"
        )
