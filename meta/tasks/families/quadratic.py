"""Noisy quadratics of a given spectrum."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_bool, check_integer
from meta import random
from meta.tasks import base, ranges
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic(base.Task):
    """`|H^(1/2) (x - x* - noise)|^2 / (2 trace H)`, as a matrix times a vector.

    The eigenvalues of H are logarithmically spaced from 1 down to `1 / condition`, in a
    random basis; x* is standard normal, and the start is `start_scale` away from it. Every
    training batch draws a noise anew; validation and test have none.

    The basis is a product of two Householder reflections: random enough to mix all
    coordinates, and cheap.

    With `drawn_spectrum`, the eigenvalues of each problem are drawn log-uniformly from the same
    range instead, and the trace is left out: the linear regression of Maheswaranathan et al.,
    arXiv 2011.02159.

    Args:
        dimension: of x.
        condition: largest over smallest eigenvalue.
        noise: standard deviation of the noise on x*.
        start_scale: standard deviation of the start around x*.
        drawn_spectrum: whether the eigenvalues are drawn instead of spaced.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    name: ClassVar = "quadratic"
    architecture: ClassVar = {"dimension": ranges.Size(2, 128)}
    setting: ClassVar = {
        "condition": ranges.LogUniform(1.0, 1e5),
        "noise": ranges.LogUniform(1e-3, 1.0),
        "start_scale": ranges.LogUniform(0.1, 10.0),
    }
    large: ClassVar = {"dimension": ranges.Size(2048, 4096)}

    dimension: int = 32
    condition: float = 100.0
    noise: float = 0.1
    start_scale: float = 1.0
    drawn_spectrum: bool = False

    def __post_init__(self) -> None:
        check_integer("dimension", self.dimension, low=1)
        check_bool("drawn_spectrum", self.drawn_spectrum)
        super().__post_init__()

    def draw(self, seed: Tensor, num: int, variant: Tensor | None = None) -> dict[str, Any]:
        setting = super().draw(seed, num, variant)
        seeds = random.split(seed, 3)
        shape = (num, self.dimension)
        exponents = tf.constant(np.linspace(0.0, 1.0, self.dimension), tf.float32)
        if self.drawn_spectrum:
            exponents = random.uniform(shape, random.fold_in(seed, 3))
        spectrum = tf.pow(setting["condition"][:, None], -exponents)
        if not self.drawn_spectrum:
            spectrum /= tf.reduce_sum(spectrum, axis=1, keepdims=True)
        optimum, *normals = random.normals([shape] * len(seeds), seeds)
        return {
            **setting,
            "spectrum": spectrum,
            "optimum": optimum,
            "reflections": tf.stack([_unit(normal) for normal in normals], axis=1),
        }

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        offset = random.normal((num, self.dimension), seed)
        return [setting["optimum"] + layers.per_particle(setting["start_scale"], 2) * offset]

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        shape = (num, self.dimension)
        if split != "train":
            return tf.zeros(shape)
        return layers.per_particle(setting["noise"], 2) * random.normal(shape, seed)

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        x = params[0] - setting["optimum"] - data
        for i in range(2):
            axis = setting["reflections"][:, i]
            x = x - 2.0 * axis * tf.reduce_sum(axis * x, axis=1, keepdims=True)
        return 0.5 * tf.reduce_sum(setting["spectrum"] * tf.square(x), axis=1)


def _unit(x: Tensor) -> Tensor:
    """`[num, n]` with norm 1."""
    return x * tf.math.rsqrt(tf.reduce_sum(tf.square(x), axis=1, keepdims=True))
