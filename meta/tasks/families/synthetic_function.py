"""Functions of two variables, as optimizers are tested on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random
from meta.tasks import base, ranges
from meta.tasks.networks import layers


def _rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return tf.square(1.0 - x) + 100.0 * tf.square(y - tf.square(x))


def _beale(x: Tensor, y: Tensor) -> Tensor:
    terms = ((1.5, 1), (2.25, 2), (2.625, 3))
    return sum(tf.square(c - x + x * y**power) for c, power in terms)


def _booth(x: Tensor, y: Tensor) -> Tensor:
    return tf.square(x + 2.0 * y - 7.0) + tf.square(2.0 * x + y - 5.0)


def _himmelblau(x: Tensor, y: Tensor) -> Tensor:
    return tf.square(tf.square(x) + y - 11.0) + tf.square(x + tf.square(y) - 7.0)


def _rastrigin(x: Tensor, y: Tensor) -> Tensor:
    waves = tf.cos(2.0 * math.pi * x) + tf.cos(2.0 * math.pi * y)
    return 20.0 + tf.square(x) + tf.square(y) - 10.0 * waves


def _styblinski_tang(x: Tensor, y: Tensor) -> Tensor:
    return sum(0.5 * (z**4 - 16.0 * tf.square(z) + 5.0 * z) for z in (x, y)) + 78.332331


def _ackley(x: Tensor, y: Tensor) -> Tensor:
    radius = tf.sqrt(0.5 * (tf.square(x) + tf.square(y)) + 1e-6)
    waves = 0.5 * (tf.cos(2.0 * math.pi * x) + tf.cos(2.0 * math.pi * y))
    return 20.0 + math.e - 20.0 * tf.exp(-0.2 * radius) - tf.exp(waves)


FUNCTIONS = {
    "rosenbrock": _rosenbrock,
    "beale": _beale,
    "booth": _booth,
    "himmelblau": _himmelblau,
    "rastrigin": _rastrigin,
    "styblinski_tang": _styblinski_tang,
    "ackley": _ackley,
}
"""Each with a minimum of 0 (but for rounding): functions of two arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticFunction(base.Task):
    """A function of two variables, from a random start in a square around zero.

    The loss is `log(1 + f(x, y))`, as the functions grow like fourth powers, or f itself
    over its scale. There are no data; all splits are the same.

    Args:
        function: one of `FUNCTIONS`.
        logarithmic: whether the loss is `log(1 + f)`; otherwise it is f / 100.
        start_width: half the side of the square.
        x_scale: the function sees `x_scale` times the first parameter: its condition.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    name: ClassVar = "synthetic_function"
    architecture: ClassVar = {
        "function": ranges.Choice(*FUNCTIONS),
        "logarithmic": ranges.Choice(True, False),
    }
    setting: ClassVar = {
        "start_width": ranges.Uniform(0.5, 3.0),
        "x_scale": ranges.LogUniform(0.3, 3.0),
    }
    num_architectures: ClassVar = 8

    function: str = "rosenbrock"
    logarithmic: bool = True
    start_width: float = 2.0
    x_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(
                f"`function` must be one of {tuple(FUNCTIONS)}. "
                f"Received: function={self.function!r}"
            )
        super().__post_init__()

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        unit = random.uniform((num, 2), seed, -1.0, 1.0)
        return [unit * layers.per_particle(setting["start_width"], 2)]

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        return ()

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        x, y = tf.unstack(params[0], axis=1)
        value = tf.maximum(FUNCTIONS[self.function](x * setting["x_scale"], y), 0.0)
        return tf.math.log1p(value) if self.logarithmic else 0.01 * value
