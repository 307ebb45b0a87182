"""Inner training: an update rule on the problems of a task, from the beginning."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lopt_keras import fusion
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Tensor, Theta
from meta import random
from meta.inner import unroll
from meta.tasks.base import Task
from meta.tasks.wrapper import Chosen


class Curves(NamedTuple):
    """Losses of one optimizer on the problems of a task, as the task scores them.

    Attributes:
        train: on the batch of a step, before it, `[steps, problems]`.
        held_out: on a fresh batch of the split that is measured, before each step,
            `[steps, problems]`.
        test: of the last parameters, mean over batches of the test split, `[problems]`; None
            if it was not asked for.
    """

    train: np.ndarray
    held_out: np.ndarray
    test: np.ndarray | None


class InnerTraining:
    """Several thetas of a rule on the same problems: one program, compiled once.

    Args:
        task, rule: `Task`, `UpdateRule`.
        num_thetas, num_problems, num_steps: Python ints.
        signals_known: whether the rule hears the number of steps, and validation losses if it makes
            use of them.
        split: "train", "validation" or "test": of `Curves.held_out`.
        test_batches: over how many batches `Curves.test` is a mean; 0 for none.
    """

    def __init__(
        self,
        task: Task,
        rule: UpdateRule,
        num_thetas: int,
        num_problems: int,
        num_steps: int,
        signals_known: bool,
        split: str = "validation",
        test_batches: int = 0,
    ) -> None:
        self._task, self._rule = task, rule
        self._shape = (num_thetas, num_problems)
        self._num_steps = num_steps
        self._known = (num_steps if signals_known else 0, signals_known)
        self._split, self._test_batches = split, test_batches
        self._program = tf.function(self._train, jit_compile=True, autograph=False)
        self._compiled: Any = None

    def __call__(
        self, thetas: Sequence[Mapping[str, Any]], seed: Tensor, variant: Any = None
    ) -> list[Curves]:
        """Trains from the beginning.

        Args:
            thetas: `num_thetas` dicts of arrays.
            seed: `[2]` int32, of the problems.
            variant: of the task, an integer, or one for each problem; by default the variants
                are drawn. Given once, it is given always.

        Returns:
            List of `Curves`, one for each theta.
        """
        particles = {
            name: tf.constant(np.repeat([t[name] for t in thetas], self._shape[1], axis=0))
            for name in thetas[0]
        }
        arguments = [particles, seed]
        if variant is not None:
            arguments.append(tf.constant(np.broadcast_to(variant, self._shape[1:]), tf.int32))
        if self._compiled is None:
            # As a concrete function: each training is a program of its own, made once.
            self._compiled = self._program.get_concrete_function(*arguments)
        losses = self._compiled(*arguments)
        losses = [x.numpy().reshape(*x.shape[:-1], *self._shape) for x in losses]
        return [
            Curves(*(x[..., i, :] for x in losses), *[None] * (3 - len(losses)))
            for i in range(self._shape[0])
        ]

    def _train(self, particles: Theta, seed: Tensor, *variant: Tensor) -> list[Tensor]:
        # Not `variant=None`: a concrete function would need it.
        problems = self._shape[1]
        task = Chosen(self._task, *variant) if variant else self._task
        inner = unroll.begin(
            self._rule, task, particles, random.fold_in(seed, 0), problems, *self._known
        )
        with fusion.scope():
            trajectory, inner = unroll.run(
                self._rule,
                task,
                particles,
                inner,
                random.fold_in(seed, 1),
                self._num_steps,
                problems,
                self._split,
            )
        curves = [task.score(trajectory.kept_train_loss, inner.setting), trajectory.outer_loss]
        if self._test_batches:
            seed = random.fold_in(seed, 2)
            test = unroll.evaluate(task, inner, seed, "test", self._test_batches, problems)
            curves.append(test)
        return curves
