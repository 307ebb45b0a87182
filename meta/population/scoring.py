"""How well thetas train, compiled."""

import tensorflow as tf

from lopt_keras.types import Tensor, Tensors
from meta import random
from meta.estimators.base import Estimator
from meta.inner import unroll


class Scoring:
    """Scores thetas of a rule on the same fresh problems for all.

    Args:
        estimator: `Estimator`, of which rule, task, horizon and outer loss are.
    """

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    @tf.function(jit_compile=True, autograph=False)
    def __call__(self, theta: Tensors, seed: Tensor, num_problems: int) -> Tensor:
        """The mean outer loss over the steps, and over problems of the whole horizon.

        Args:
            theta: dict of `[N, ...]`.
            seed: `[2]` int32, of the problems.
            num_problems: Python int.

        Returns:
            `[N]`, lower is better.
        """
        estimator = self._estimator
        rule, task, horizon = estimator.rule, estimator.task, estimator.horizon
        copies = {name: tf.repeat(x, num_problems, axis=0) for name, x in theta.items()}
        told = (horizon if estimator.horizon_known else 0), estimator.validation_known > 0
        seeds = random.split(seed, 2)
        inner = unroll.begin(rule, task, copies, seeds[0], num_problems, *told)
        trajectory, _ = unroll.run(
            rule, task, copies, inner, seeds[1], horizon, num_problems, estimator.outer_split
        )
        losses, _ = estimator.outer_losses(trajectory, horizon)
        return tf.reduce_mean(tf.reshape(losses, (-1, num_problems)), axis=1)
