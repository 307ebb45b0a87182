"""Two interleaved half circles, to be told apart by a multilayer perceptron."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import base, ranges
from meta.tasks.families import noise
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class TwoMoons(base.Task):
    """An MLP tells two half circles apart, from points that are drawn anew in every batch.

    A point of the first class is `(cos a, sin a)`, of the second `(1 - cos a, 1/2 - sin a)`,
    with a uniform in (0, pi); the plane is then moved by `(-1/2, -1/4)` and turned about
    zero, and noise added. The classes are equally frequent. All splits are drawn alike.

    Args:
        hidden_units: units of each hidden layer.
        activation: any Keras activation by name.
        batch_size: points in a batch.
        init_scale: multiplies the initial weights.
        noise: standard deviation of the noise on each coordinate.
        rotation: angle by which the plane is turned, in radians.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: one of the three tasks of Maheswaranathan et al., arXiv 2011.02159; sizes and
    rotation are ours.
    """

    name: ClassVar = "two_moons"
    architecture: ClassVar = {
        "hidden_units": ranges.Layers(1, 3, ranges.Size(4, 32)),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 128),
    }
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "noise": ranges.LogUniform(0.02, 0.4),
        "rotation": ranges.Uniform(0.0, 6.28),
    }
    large: ClassVar = {"hidden_units": ranges.Layers(2, 3, ranges.Size(64, 128))}

    # Of the fields of an instance.
    _weight_shapes: ClassVar[list[tuple[int, ...]]]

    hidden_units: tuple[int, ...] = (16, 16)
    activation: str = "tanh"
    batch_size: int = 64
    init_scale: float = 1.0
    noise: float = 0.1
    rotation: float = 0.0

    def __post_init__(self) -> None:
        for units in self.hidden_units:
            check_integer("hidden_units", units, low=1)
        check_integer("batch_size", self.batch_size, low=1)
        layers.activation(self.activation)
        super().__post_init__()
        shapes = list(itertools.pairwise([2, *self.hidden_units, 2]))
        object.__setattr__(self, "_weight_shapes", shapes)

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        return layers.init_weights(seed, num, self._weight_shapes, setting["init_scale"])

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        return draw_points(seed, (num, self.batch_size), setting["noise"], setting["rotation"])

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        points, labels = data
        logits = layers.mlp(points, params, layers.activation(self.activation))
        return layers.cross_entropy(labels, logits)


def draw_points(
    seed: Tensor, shape: Sequence[int], noise_stddev: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Points of two moons.

    Args:
        seed: `[2]`.
        shape: `(num, points)`.
        noise_stddev: `[num]`, as `noise` of `TwoMoons`.
        rotation: `[num]`, in radians.

    Returns:
        `[num, points, 2]` float32 and labels, `[num, points]` int32.
    """
    seeds = random.split(seed, 3)
    labels = random.integers(shape, seeds[0], 2)
    angle = random.uniform(shape, seeds[1], 0.0, math.pi)
    sign = tf.cast(1 - 2 * labels, tf.float32)
    # About zero, the second moon is the first one turned by half a circle.
    x = sign * (tf.cos(angle) - 0.5)
    y = sign * (tf.sin(angle) - 0.25)
    cosine, sine = tf.cos(rotation)[:, None], tf.sin(rotation)[:, None]
    points = tf.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
    return noise.normal(points, noise_stddev, seeds[2]), labels
