"""Update rules on the problems of a task, compiled."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from meta import random
from meta.tasks.scoring.references import Chosen
from meta.training import unroll

TEST_BATCHES = 20
"""Batches of the test split over which a loss at the end is a mean."""


class Curves(NamedTuple):
    """Losses of one optimizer on the problems of a task, as the task scores them.

    Attributes:
        train: on the batch of a step, before it, `[steps, problems]`.
        validation: on a fresh batch, before each step, `[steps, problems]`.
        test: of the last parameters, mean over `TEST_BATCHES` batches, `[problems]`.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class RuleTraining:
    """Several thetas of a rule on the same problems: one program for all variants of a task.

    Args:
        task, rule: `Task`, `UpdateRule`.
        num_thetas, num_problems, num_steps: Python ints.
        told: whether the rule hears the number of steps, and validation losses if it makes
            use of them.
    """

    def __init__(self, task, rule, num_thetas, num_problems, num_steps, told):
        self._task, self._rule = task, rule
        self._shape = (num_thetas, num_problems)
        self._num_steps = num_steps
        self._told = (num_steps if told else 0, told)
        self._program = tf.function(self._train, jit_compile=True, autograph=False)
        self._compiled = None

    def __call__(self, thetas, variant, seed):
        """Trains from the beginning.

        Args:
            thetas: `num_thetas` dicts of arrays.
            variant: of the task, an integer.
            seed: `[2]` int32, of the problems.

        Returns:
            List of `Curves`, one for each theta.
        """
        particles = {
            name: tf.constant(np.repeat([t[name] for t in thetas], self._shape[1], axis=0))
            for name in thetas[0]
        }
        arguments = particles, tf.constant(variant), seed
        if self._compiled is None:
            self._compiled = self._program.get_concrete_function(*arguments)
        losses = self._compiled(*arguments)
        losses = [x.numpy().reshape(*x.shape[:-1], *self._shape) for x in losses]
        return [Curves(*(x[..., i, :] for x in losses)) for i in range(self._shape[0])]

    def _train(self, particles, variant, seed):
        problems = self._shape[1]
        task = Chosen(self._task, tf.fill([problems], variant))
        inner = unroll.begin(
            self._rule, task, particles, random.fold_in(seed, 0), problems, *self._told
        )
        trajectory, inner = unroll.run(
            self._rule,
            task,
            particles,
            inner,
            random.fold_in(seed, 1),
            self._num_steps,
            problems,
            "validation",
        )
        test = unroll.evaluate(task, inner, random.fold_in(seed, 2), "test", TEST_BATCHES, problems)
        return task.score(trajectory.kept_train_loss, inner.setting), trajectory.outer_loss, test
