"""Keras optimizers on the problems of a task, one problem at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.types import Array, Tensor
from meta import random
from meta.inner.training import Curves
from meta.tasks.base import Task
from meta.tasks.wrapper import Chosen


class KerasTraining:
    """A Keras optimizer on the same problems and batches as `InnerTraining`.

    The steps are one XLA program. The optimizer hears what `fit` would tell it, and, if it
    has the attribute `total_steps`, the number of steps.

    Args:
        task: `Task`.
        make: function without arguments that returns the optimizer.
        num_problems, num_steps: Python ints.
        signals_known: whether the optimizer hears the number of steps.
        test_batches: over how many batches `Curves.test` is a mean.
    """

    def __init__(
        self,
        task: Task,
        make: Callable[[], keras.optimizers.Optimizer],
        num_problems: int,
        num_steps: int,
        signals_known: bool,
        test_batches: int,
    ) -> None:
        self._task, self._num_problems, self._num_steps = task, num_problems, num_steps
        self._test_batches = test_batches
        self._variables = [keras.Variable(np.zeros(s, "float32")) for s in task.parameter_shapes()]
        self._optimizer = make()
        if signals_known and hasattr(self._optimizer, "total_steps"):
            self._optimizer.total_steps = num_steps
        self._optimizer.build(self._variables)
        self._initial = [variable.numpy() for variable in self._optimizer.variables]
        self._program = tf.function(self._train, jit_compile=True, autograph=False)

    def __call__(self, learning_rate: float | None, seed: Tensor, variant: int) -> Curves:
        """Trains from the beginning.

        Args:
            learning_rate: a number, or None to leave it as it is.
            seed: as for `InnerTraining`.
            variant: of the task, an integer.

        Returns:
            `Curves`.
        """
        variant = tf.constant(variant)
        runs = [
            self._run(learning_rate, variant, tf.constant(problem), seed)
            for problem in range(self._num_problems)
        ]
        return Curves(*(np.stack(losses, axis=-1) for losses in zip(*runs, strict=True)))

    def _run(
        self, learning_rate: float | None, variant: Tensor, problem: Tensor, seed: Tensor
    ) -> list[Array]:
        for variable, value in zip(self._optimizer.variables, self._initial, strict=True):
            variable.assign(value)
        if learning_rate is not None:
            self._optimizer.learning_rate = learning_rate
        return [losses.numpy() for losses in self._program(variant, problem, seed)]

    def _train(
        self, variant: Tensor, problem: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of training and validation, `[steps]` each, and of the test, a scalar."""
        params, setting = self._draw(variant, problem, random.fold_in(seed, 0))
        for variable, value in zip(self._variables, params, strict=True):
            variable.assign(value)
        empty = tf.TensorArray(tf.float32, self._num_steps, element_shape=[2])

        def body(i: Tensor, losses: tf.TensorArray) -> tuple[Tensor, tf.TensorArray]:
            step_seed = random.fold_in(random.fold_in(seed, 1), i)
            return i + 1, losses.write(i, self._take_step(setting, problem, step_seed))

        start = tf.constant(0), empty
        losses = tf.while_loop(lambda i, _: i < self._num_steps, body, start)[1].stack()
        test = self._tested(setting, problem, random.fold_in(seed, 2))
        return losses[:, 0], losses[:, 1], test

    def _draw(
        self, variant: Tensor, problem: Tensor, seed: Tensor
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """The start of a problem, and the setting of all: what `unroll.begin` draws."""
        task = Chosen(self._task, tf.fill([self._num_problems], variant))
        setting = task.draw(random.fold_in(seed, 0), self._num_problems)
        params = task.init(random.fold_in(seed, 1), self._num_problems, setting)
        return [param[problem] for param in params], setting

    def _take_step(self, setting: Mapping[str, Any], problem: Tensor, seed: Tensor) -> Tensor:
        """The scores of the training and the validation loss before the step: `[2]`."""
        data = self._batch("train", random.fold_in(seed, 0), setting, problem)
        held_out = self._batch("validation", random.fold_in(seed, 1), setting, problem)
        own = _only(setting, problem)
        validation_loss = self._loss(held_out, own)
        with tf.GradientTape() as tape:
            loss = self._loss(data, own)
            scaled = self._optimizer.scale_loss(loss[0])
        values = [v.value for v in self._variables]
        grads = tape.gradient(scaled, values, unconnected_gradients="zero")
        grads = self._task.seen_gradient([g[None] for g in grads], data, own)
        score = self._task.score(tf.stack([loss, validation_loss]), own)[:, 0]
        with tf.control_dependencies([score]):
            self._optimizer.apply([g[0] for g in grads], self._variables)
        return score

    def _tested(self, setting: Mapping[str, Any], problem: Tensor, seed: Tensor) -> Tensor:
        own = _only(setting, problem)

        def body(i: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            data = self._batch("test", random.fold_in(seed, i), setting, problem)
            return i + 1, total + self._task.score(self._loss(data, own), own)[0]

        start = tf.constant(0), tf.constant(0.0)
        total = tf.while_loop(lambda i, _: i < self._test_batches, body, start)[1]
        return total / self._test_batches

    def _batch(self, split: str, seed: Tensor, setting: Mapping[str, Any], problem: Tensor) -> Any:
        return _only(self._task.batch(split, seed, self._num_problems, setting), problem)

    def _loss(self, data: Any, setting: Mapping[str, Any]) -> Tensor:
        params = [tf.convert_to_tensor(v.value)[None] for v in self._variables]
        return self._task.loss(params, data, setting)


def _only(nest: Any, problem: Tensor) -> Any:
    """What concerns one problem, as of one particle: `[Q, ...]` -> `[1, ...]`."""
    return tf.nest.map_structure(lambda x: x[problem][None], nest)
