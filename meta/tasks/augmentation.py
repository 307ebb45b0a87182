"""Tasks in disguise: other units of parameters and losses, noisier gradients."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf
from lopt_keras.validation import check_number

from meta import random
from meta.tasks import base

REPARAMETERISATIONS = ("none", "task", "tensor", "parameter")
"""What shares a factor of the parameters: all of a problem, each tensor, or none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Augmented(base.Task):
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

    task: Any
    reparameterisation: str = "none"
    loss_scale: tuple[float, float] = (1.0, 1.0)
    gradient_noise: tuple[float, float] = (0.0, 0.0)
    factors: tuple[float, float] = (1e-3, 1e3)

    def __post_init__(self):
        if self.reparameterisation not in REPARAMETERISATIONS:
            raise ValueError(
                f"`reparameterisation` must be one of {REPARAMETERISATIONS}. "
                f"Received: reparameterisation={self.reparameterisation!r}"
            )
        _check_range("loss_scale", self.loss_scale, low_open=True)
        _check_range("gradient_noise", self.gradient_noise)
        _check_range("factors", self.factors, low_open=True)
        object.__setattr__(self, "num_variants", self.task.num_variants)
        seed = random.seed(0)
        start = self.task.init(seed, 1, self.task.draw(seed, 1))
        object.__setattr__(self, "_shapes", [tuple(param.shape[1:]) for param in start])

    @property
    def name(self):
        """The task's."""
        return self.task.name

    @property
    def loss_clip(self):
        """The task's, as scores are."""
        return self.task.loss_clip

    @property
    def loss_floor(self):
        """The task's, as scores are."""
        return self.task.loss_floor

    def draw(self, seed, num, variant=None):
        """The task's setting as an entry of that name, its `variant`, factors and level."""
        seeds = [random.fold_in(seed, i) for i in range(4)]
        setting = self.task.draw(seeds[0], num, variant)
        shapes = {
            "none": [],
            "task": [()],
            "tensor": [()] * len(self._shapes),
            "parameter": self._shapes,
        }[self.reparameterisation]
        return {
            "variant": setting["variant"],
            "task": setting,
            "factors": [
                _log_uniform((num, *shape), random.fold_in(seeds[1], i), self.factors)
                for i, shape in enumerate(shapes)
            ],
            "loss_scale": _log_uniform((num,), seeds[2], self.loss_scale),
            "gradient_noise": random.uniform((num,), seeds[3], *self.gradient_noise),
        }

    def init(self, seed, num, setting):
        params = self.task.init(seed, num, setting["task"])
        return [p / c for p, c in zip(params, self._factors(setting), strict=True)]

    def batch(self, split, seed, num, setting):
        """The task's batch, and the noise of the gradient; none where it has no use."""
        data = self.task.batch(split, random.fold_in(seed, 0), num, setting["task"])
        if split != "train" or not self._is_noisy:
            return data, []
        seeds = [random.fold_in(seed, 1 + i) for i in range(len(self._shapes))]
        return data, [
            random.normal((num, *shape), s) for shape, s in zip(self._shapes, seeds, strict=True)
        ]

    def loss(self, params, data, setting):
        params = [p * c for p, c in zip(params, self._factors(setting), strict=True)]
        return setting["loss_scale"] * self.task.loss(params, data[0], setting["task"])

    def seen_gradient(self, grads, data, setting):
        data, noise = data
        grads = self.task.seen_gradient(grads, data, setting["task"])
        if not self._is_noisy:
            return grads
        level = setting["gradient_noise"]
        return [
            g + _as_rank(level, g.shape.rank) * _root_mean_square(g) * n
            for g, n in zip(grads, noise, strict=True)
        ]

    def score(self, losses, setting):
        return self.task.score(losses / setting["loss_scale"], setting["task"])

    def get_config(self):
        """The task's, and its disguise as the entry `augmentation`."""
        own = {key: value for key, value in super().get_config().items() if key != "task"}
        return {**self.task.get_config(), "augmentation": own}

    @property
    def _is_noisy(self):
        return self.gradient_noise[1] > 0

    def _factors(self, setting):
        """One for each parameter, `[P, ...]` of its rank."""
        factors = {
            "none": [tf.ones(1)] * len(self._shapes),
            "task": setting["factors"] * len(self._shapes),
        }.get(self.reparameterisation, setting["factors"])
        ranks = [1 + len(shape) for shape in self._shapes]
        return [_as_rank(c, rank) for c, rank in zip(factors, ranks, strict=True)]


def _as_rank(x, rank):
    """With axes of length one at the end."""
    return tf.reshape(x, (*x.shape, *(1,) * (rank - x.shape.rank)))


def _log_uniform(shape, seed, bounds):
    return tf.exp(random.uniform(shape, seed, *(math.log(bound) for bound in bounds)))


def _root_mean_square(x):
    """Over all but the particle axis of `[P, ...]`, which it keeps: `[P, 1, ...]`."""
    mean = tf.reduce_mean(tf.square(x), axis=range(1, x.shape.rank), keepdims=True)
    return tf.sqrt(mean + 1e-30)  # The root has no finite slope at zero.


def _check_range(name, value, low_open=False):
    """Raises unless `value` is `(low, high)`, neither negative, nor zero if `low_open`."""
    if isinstance(value, str) or not np.iterable(value) or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair (low, high). Received: {name}={value!r}")
    for bound in value:
        check_number(name, bound, low_open=low_open)
    if value[0] > value[1]:
        raise ValueError(f"`{name}` must be (low, high). Received: {name}={value!r}")
