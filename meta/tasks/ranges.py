"""Ranges from which tasks draw their arguments.

Each has `sample(rng, drawn)`, which gives a value that JSON can hold, and prints as
a person would write it. `rng` is a `numpy.random.Generator`; only its `random` is used,
whose stream is the same on every machine. `drawn` holds the arguments drawn before.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> Any:
        return self.values[int(rng.random() * len(self.values))]

    def __str__(self) -> str:
        return " | ".join(str(value) for value in self.values)


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number, `low` to `high` inclusive."""

    low: int
    high: int

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> int:
        return self.low + int(rng.random() * (self.high - self.low + 1))

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class Size:
    """A power of two, `low` to `high` inclusive: sizes decide which program runs."""

    low: int
    high: int

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> int:
        first, last = (int(math.log2(x)) for x in (self.low, self.high))
        return 2 ** Integer(first, last).sample(rng, drawn)

    def __str__(self) -> str:
        return f"{self.low}, {2 * self.low}, ..., {self.high}"


@dataclasses.dataclass(frozen=True)
class Layers:
    """A list of sizes, one for each of `least` to `most` layers."""

    least: int
    most: int
    size: Any

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> list[Any]:
        return [
            self.size.sample(rng, drawn)
            for _ in range(Integer(self.least, self.most).sample(rng, drawn))
        ]

    def __str__(self) -> str:
        return f"{self.least} to {self.most} layers of {self.size}"


@dataclasses.dataclass(frozen=True)
class Each:
    """A list with a value for each entry of an argument drawn before."""

    of: str
    value: Any

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> list[Any]:
        return [self.value.sample(rng, drawn) for _ in drawn[self.of]]

    def __str__(self) -> str:
        return f"{self.value} for each of {self.of}"


@dataclasses.dataclass(frozen=True)
class Where:
    """A value of `value` where an argument drawn before has some value, else another one."""

    of: str
    equals: Any
    value: Any
    otherwise: Any

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> Any:
        return self.value.sample(rng, drawn) if drawn[self.of] == self.equals else self.otherwise

    def __str__(self) -> str:
        return f"{self.value} where {self.of} is {self.equals}"


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A number between `low` and `high`, to three digits."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> float:
        return _rounded(self.low + rng.random() * (self.high - self.low))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """A number between `low` and `high`, its logarithm uniform, to three digits."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator, drawn: Mapping[str, Any]) -> float:
        return _rounded(self.low * (self.high / self.low) ** rng.random())

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, logarithmically"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
