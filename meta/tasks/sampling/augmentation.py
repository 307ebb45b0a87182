"""Tasks in disguise: other units of parameters and losses, noisier gradients."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_number
from meta import random
from meta.tasks import base
from meta.tasks.wrapper import Wrapper

REPARAMETERISATIONS = ("none", "task", "tensor", "parameter")
"""What shares a factor of the parameters: all of a problem, each tensor, or none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Augmented(Wrapper):
    """A task whose problems are disguised, each in its own way.

    - Parameters: the optimizer works on P' instead of P = c P', with factors c.
    - Loss: the optimizer sees the loss times a factor. The score is that of the task.
    - Gradient: the optimizer sees `g + level * rms(g) * noise`, with noise that is standard
      normal, the same for all particles of a problem, and root mean squares over a tensor.
      No loss has noise. Under a gradient tape, the noise is a constant.

    Factors and levels are drawn for each problem, and stay the same while it is trained.

    Args:
        task: `Task`.
        reparameterisation: one of `REPARAMETERISATIONS`.
        loss_scale: `(low, high)` of the loss's factor, which is log-uniform.
        gradient_noise: `(low, high)` of the level, which is uniform.
        factors: `(low, high)` of the factors c, which are log-uniform.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the factors of parameters are the reparameterisation augmentation with which
    Moudgil et al., arXiv 2602.19142, meta-train.
    """

    # Of the parameters of the task.
    _shapes: ClassVar[list[tuple[int, ...]]]

    reparameterisation: str = "none"
    loss_scale: tuple[float, float] = (1.0, 1.0)
    gradient_noise: tuple[float, float] = (0.0, 0.0)
    factors: tuple[float, float] = (1e-3, 1e3)

    def __post_init__(self) -> None:
        if self.reparameterisation not in REPARAMETERISATIONS:
            raise ValueError(
                f"`reparameterisation` must be one of {REPARAMETERISATIONS}. "
                f"Received: reparameterisation={self.reparameterisation!r}"
            )
        _check_range("loss_scale", self.loss_scale, low_open=True)
        _check_range("gradient_noise", self.gradient_noise)
        _check_range("factors", self.factors, low_open=True)
        seed = random.seed(0)
        start = self.task.init(seed, 1, self.task.draw(seed, 1))
        object.__setattr__(self, "_shapes", [tuple(param.shape[1:]) for param in start])

    def draw(self, seed: Tensor, num: int, variant: Any = None) -> dict[str, Any]:
        """The task's setting as an entry of that name, its `variant`, factors and level."""
        seeds = random.split(seed, 4)
        setting = self.task.draw(seeds[0], num, variant)
        of_kind: dict[str, list[tuple[int, ...]]] = {
            "none": [],
            "task": [()],
            "tensor": [()] * len(self._shapes),
            "parameter": self._shapes,
        }
        shapes = [(num, *shape) for shape in of_kind[self.reparameterisation]]
        own_seeds = random.split(seeds[1], len(shapes))
        factors = random.uniforms(shapes, own_seeds, *_logarithms(self.factors))
        return {
            "variant": setting["variant"],
            "task": setting,
            "factors": [tf.exp(x) for x in factors],
            "loss_scale": tf.exp(random.uniform((num,), seeds[2], *_logarithms(self.loss_scale))),
            "gradient_noise": random.uniform((num,), seeds[3], *self.gradient_noise),
        }

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        params = self.task.init(seed, num, setting["task"])
        return [p / c for p, c in zip(params, self._factors(setting), strict=True)]

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        """The task's batch, and the noise of the gradient; none where it has no use."""
        data = self.task.batch(split, random.fold_in(seed, 0), num, setting["task"])
        if split != "train" or not self._is_noisy:
            return data, []
        _, *seeds = random.split(seed, 1 + len(self._shapes))
        return data, random.normals([(num, *shape) for shape in self._shapes], seeds)

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        params = [p * c for p, c in zip(params, self._factors(setting), strict=True)]
        return setting["loss_scale"] * self.task.loss(params, data[0], setting["task"])

    def seen_gradient(
        self, grads: Sequence[Tensor], data: Any, setting: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        data, noise = data
        grads = self.task.seen_gradient(grads, data, setting["task"])
        if not self._is_noisy:
            return grads
        level = setting["gradient_noise"]
        return [
            g + _as_rank(level, g.shape.rank) * _root_mean_square(g) * n
            for g, n in zip(grads, noise, strict=True)
        ]

    def score(self, losses: Tensor, setting: Mapping[str, Any]) -> Tensor:
        return self.task.score(losses / setting["loss_scale"], setting["task"])

    def get_config(self) -> dict[str, Any]:
        """The task's, and its disguise as the entry `augmentation`."""
        own = (f.name for f in dataclasses.fields(self) if f.name != "task")
        disguise = {name: base.plain(getattr(self, name)) for name in own}
        return {**self.task.get_config(), "augmentation": disguise}

    @property
    def _is_noisy(self) -> bool:
        return self.gradient_noise[1] > 0

    def _factors(self, setting: Mapping[str, Any]) -> list[Tensor]:
        """One for each parameter, `[P, ...]` of its rank."""
        factors = {
            "none": [tf.ones(1)] * len(self._shapes),
            "task": setting["factors"] * len(self._shapes),
        }.get(self.reparameterisation, setting["factors"])
        ranks = [1 + len(shape) for shape in self._shapes]
        return [_as_rank(c, rank) for c, rank in zip(factors, ranks, strict=True)]


def _as_rank(x: Tensor, rank: int) -> Tensor:
    """With axes of length one at the end."""
    return tf.reshape(x, (*x.shape, *(1,) * (rank - x.shape.rank)))


def _logarithms(bounds: Sequence[float]) -> list[float]:
    return [math.log(bound) for bound in bounds]


def _root_mean_square(x: Tensor) -> Tensor:
    """Over all but the particle axis of `[P, ...]`, which it keeps: `[P, 1, ...]`."""
    mean = tf.reduce_mean(tf.square(x), axis=range(1, x.shape.rank), keepdims=True)
    return tf.sqrt(mean + 1e-30)  # The root has no finite slope at zero.


def _check_range(name: str, value: Any, low_open: bool = False) -> None:
    """Raises unless `value` is `(low, high)`, neither negative, nor zero if `low_open`."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair (low, high). Received: {name}={value!r}")
    for bound in value:
        check_number(name, bound, low_open=low_open)
    if value[0] > value[1]:
        raise ValueError(f"`{name}` must be (low, high). Received: {name}={value!r}")
