"""Which values the options of the optimizer may have, and until when they may change."""

from typing import Any

import numpy as np

from lopt_keras import validation

_STATE_DTYPES = ("float32", "bfloat16")
_HIGHEST_COUNT = 2**31 - 1

_NUMBERS = {
    "weight_decay": {},
    "clipnorm": {},
    "clipvalue": {},
    "global_clipnorm": {},
    "loss_scale_factor": {"low_open": True},
}
_INTEGERS = {
    "total_steps": {"low": 1, "high": _HIGHEST_COUNT},
    "gradient_accumulation_steps": {"low": 2, "high": _HIGHEST_COUNT},
    "ema_overwrite_frequency": {"low": 1, "high": _HIGHEST_COUNT},
}
_BOOLS = {"use_ema": None, "jit_compile": "auto"}  # Each with what it may be besides.

# The optimizer's variables depend on these ...
_FIXED_WHEN_BUILT = ("rule", "state_dtype", "use_ema", "gradient_accumulation_steps")
# ... and these are constants of a training step that has been traced.
_FIXED_WHEN_TRACED = (
    *_NUMBERS,
    "ema_momentum",
    "ema_overwrite_frequency",
    "jit_compile",
    "seed",
    "exclude_from_weight_decay",
)
CHANGEABLE = ("learning_rate", *_FIXED_WHEN_BUILT, *_FIXED_WHEN_TRACED)
"""Attributes of the optimizer whose assignment is looked at."""


def check(name: str, value: Any) -> None:
    """Raises unless the option `name` may have this value.

    Raises:
        TypeError, ValueError: naming the option, its value and what is expected.
    """
    if name in _NUMBERS and value is not None:
        validation.check_number(name, value, **_NUMBERS[name])
    elif name in _INTEGERS and value is not None:
        validation.check_integer(name, value, **_INTEGERS[name])
    elif name in _BOOLS and not _is_bool_or(_BOOLS[name], value):
        raise TypeError(f"`{name}` must be a bool or {_BOOLS[name]!r}. Received: {name}={value!r}")
    elif name == "ema_momentum":
        validation.check_number(name, value, high=1.0)
    elif name == "learning_rate" and isinstance(value, int | float | np.number):
        validation.check_number(name, value)
    elif name == "seed":
        validation.check_integer(name, value, low=0)
    elif name == "state_dtype" and value not in _STATE_DTYPES:
        raise ValueError(f"`{name}` must be one of {_STATE_DTYPES}. Received: {name}={value!r}")
    elif name == "name" and not (value is None or isinstance(value, str)):
        raise TypeError(f"`name` must be a string or None. Received: name={value!r}")


def _is_bool_or(other: str | None, value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, type(other)) and value == other)


def check_change(name: str, value: Any, built: bool, traced: bool) -> None:
    """Raises if an optimizer would not obey a new value of an option.

    Args:
        name, value: of the option.
        built: whether the optimizer has its variables.
        traced: whether it is part of a compiled training step.

    Raises:
        AttributeError: naming the option, its value and what to do instead.
    """
    fixed = traced and name in _FIXED_WHEN_TRACED
    fixed |= built and name in _FIXED_WHEN_BUILT
    # A number goes to a variable, which a compiled step reads. A schedule is part of it.
    fixed |= traced and name == "learning_rate" and callable(value)
    if fixed:
        raise AttributeError(
            f"`{name}` cannot be changed any more: the optimizer has been built or compiled with "
            f"what it was, and would not obey. Received: {name}={value!r}. Make a new optimizer, "
            "and compile the model with it."
        )
