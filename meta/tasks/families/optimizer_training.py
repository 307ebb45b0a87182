"""Meta-training as a task: the parameters are the theta of a small update rule."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras import rules
from lopt_keras.types import Tensor, Tensors
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import base, ranges
from meta.tasks.networks import layers

_MULTIPLIERS = {"step_mult": 0.3, "exp_mult": 0.3}

RULES = {
    "mlp": rules.MLP(hidden_size=4, hidden_layers=1, momentum_decays=(0.5, 0.9), **_MULTIPLIERS),
    "deep_mlp": rules.MLP(
        hidden_size=8, hidden_layers=2, momentum_decays=(0.5, 0.9, 0.99), **_MULTIPLIERS
    ),
}
"""The small rules whose theta is trained."""


@dataclasses.dataclass(frozen=True, eq=False)
class OptimizerTraining(base.Task):
    """Trains a small learned optimizer, on short unrolls on noisy quadratics.

    The parameters of a particle are the theta of `rule`, one tensor for each of its
    entries. Its loss is the mean of `log(1 + 10 l)` over the losses l after each of
    `num_steps` steps that the rule takes on `batch_size` quadratics, drawn anew in every
    batch, `l(x) = sum_i s_i x_i^2 / 2`. The eigenvalues s are logarithmically spaced, and
    their sum is 1; the starts are normal. The gradients that the rule sees are noisy.

    This is the problem that the outer optimizer of meta-training has, in small: with it,
    learned optimizers can learn to train learned optimizers. All splits are drawn alike.

    Args:
        rule: one of `RULES`.
        dimension: of the quadratics.
        num_steps: of the unroll.
        batch_size: quadratics in a batch.
        init_scale: multiplies the start of theta, whose matrices are normal with
            standard deviation `1 / sqrt(fan_in)`; all else starts at zero.
        condition: largest over smallest eigenvalue.
        start_scale: standard deviation of the starts of the quadratics.
        noise: standard deviation of the noise on the point where a gradient is taken.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the idea of Metz et al., arXiv 2101.07367 and arXiv 2009.11243 (section on
    training learned optimizers with themselves); the problem is ours. Rules with a
    controller are left out, as their second derivatives take minutes to compile.
    """

    name: ClassVar = "optimizer_training"
    architecture: ClassVar = {
        "rule": ranges.Choice(*RULES),
        "dimension": ranges.Choice(4, 8),
        "num_steps": ranges.Choice(5, 8),
        "batch_size": ranges.Size(2, 8),
    }
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 2.0),
        "condition": ranges.LogUniform(1.0, 100.0),
        "start_scale": ranges.LogUniform(0.3, 3.0),
        "noise": ranges.LogUniform(0.01, 0.5),
    }

    # Of the fields of an instance.
    _rule: ClassVar[rules.UpdateRule]

    rule: str = "mlp"
    dimension: int = 8
    num_steps: int = 5
    batch_size: int = 4
    init_scale: float = 1.0
    condition: float = 10.0
    start_scale: float = 1.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"`rule` must be one of {tuple(RULES)}. Received: rule={self.rule!r}")
        for name in ("dimension", "num_steps", "batch_size"):
            check_integer(name, getattr(self, name), low=1)
        super().__post_init__()
        object.__setattr__(self, "_rule", RULES[self.rule])

    def draw(self, seed: Tensor, num: int, variant: Tensor | None = None) -> dict[str, Any]:
        setting = super().draw(seed, num, variant)
        exponents = tf.constant(np.linspace(0.0, 1.0, self.dimension), tf.float32)
        spectrum = tf.pow(setting["condition"][:, None], -exponents)
        spectrum /= tf.reduce_sum(spectrum, axis=1, keepdims=True)
        return {**setting, "spectrum": spectrum}

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        scale = setting["init_scale"]
        shapes = list(self._rule.theta_shapes().values())
        drawn = random.normals([(num, *shape) for shape in shapes], random.split(seed, len(shapes)))
        return [
            value * shape[0] ** -0.5 * layers.per_particle(scale, value.shape.rank)
            if len(shape) == 2
            else tf.zeros_like(value)
            for shape, value in zip(shapes, drawn, strict=True)
        ]

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        seeds = random.split(seed, 2)
        shape = (num, self.batch_size, self.dimension)
        starts = random.normal(shape, seeds[0])
        noises = random.normal((num, self.num_steps, *shape[1:]), seeds[1])
        return (
            starts * layers.per_particle(setting["start_scale"], 3),
            noises * layers.per_particle(setting["noise"], 4),
        )

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        starts, noises = data
        theta = dict(zip(self._rule.theta_shapes(), map(self._per_problem, params), strict=True))
        spectrum = self._per_problem(setting["spectrum"])
        x = tf.reshape(starts, spectrum.shape)
        noises = tf.reshape(tf.transpose(noises, (1, 0, 2, 3)), (self.num_steps, *x.shape))
        state = self._rule.init_state(theta, [x])
        total = tf.zeros(x.shape[0])
        _, _, _, total = tf.while_loop(
            lambda i, *_: i < self.num_steps,
            lambda i, *now: (i + 1, *self._advance(theta, spectrum, noises[i], i, *now)),
            (tf.constant(0), x, state, total),
            maximum_iterations=self.num_steps,
        )
        return tf.reduce_mean(tf.reshape(total, starts.shape[:2]), axis=1) / self.num_steps

    def _advance(
        self,
        theta: Tensors,
        spectrum: Tensor,
        noise: Tensor,
        i: Tensor,
        x: Tensor,
        state: Any,
        total: Tensor,
    ) -> tuple[Tensor, Any, Tensor]:
        """One step of all quadratics: point `[N, dimension]`, state, sum of losses `[N]`."""
        x_noisy = x + noise
        loss = _quadratic(spectrum, x_noisy)
        signals = rules.Signals.silent(tf.fill([x.shape[0]], i), train_loss=loss)
        # The derivative in closed form: one level of differentiation less.
        (update,), state = self._rule.update(theta, state, [spectrum * x_noisy], [x], signals)
        x = x + update
        return x, state, total + tf.math.log1p(10.0 * _quadratic(spectrum, x))

    def _per_problem(self, x: Tensor) -> Tensor:
        """`[P, ...]` -> `[P * batch_size, ...]`, every particle's value for all its problems."""
        return tf.reshape(tf.stack([x] * self.batch_size, axis=1), (-1, *x.shape[1:]))


def _quadratic(spectrum: Tensor, x: Tensor) -> Tensor:
    return 0.5 * tf.reduce_sum(spectrum * tf.square(x), axis=1)
