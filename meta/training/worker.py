"""What computes the estimates of shards: the compiled programs, in this process or another."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tqdm

from lopt_keras.types import Tensor, Tensors, Theta
from meta import random
from meta.estimators.base import Estimator
from meta.training import shards
from meta.training.curriculum import Curriculum


class Worker:
    """Holds programs, one for each estimator, and makes estimates with them.

    It holds no state of a shard: an estimate is a function of theta, a state and a `Unit`.

    Args:
        estimators: list of `Estimator`.
        curriculum: `Curriculum` of the problems' lengths.
        seed: integer.
    """

    def __init__(self, estimators: Sequence[Estimator], curriculum: Curriculum, seed: int) -> None:
        self._estimators = list(estimators)
        self._curriculum = curriculum
        self._seed = random.seed(seed)
        self._structures: dict[int, Any] = {}
        self._used: set[int] = set()

    def init_state(self, theta: Theta, shard: int, program: int) -> list[Tensor]:
        """The flat state of a shard's estimator before its first estimate: list of tensors."""
        state = self._init_state(_tensors(theta), shards.seed_of(self._seed, shard), program)
        self._structures[program] = tf.nest.map_structure(tf.type_spec_from_value, state)
        return tf.nest.flatten(state)

    def trace(self, theta: Theta, programs: Sequence[int], quiet: bool = False) -> float:
        """Traces programs of which a state was made, in the order given: seconds.

        TensorFlow numbers functions as it traces them, and a cache of compiled programs knows
        them by these names: traced as the steps come, a resumed run would find none of them.
        """
        start = time.perf_counter()
        specs = {name: tf.TensorSpec(x.shape, tf.float32) for name, x in theta.items()}
        seed, step = tf.TensorSpec((2,), tf.int32), tf.TensorSpec((), tf.int64)
        bar = tqdm.tqdm(programs, desc="tracing", unit="program", leave=False, disable=quiet)
        for program in bar:
            state = tf.nest.flatten(self._structures[program])
            self._estimate.get_concrete_function(program, specs, state, seed, step)
        return time.perf_counter() - start

    def estimate(self, theta: Theta, state: Sequence[Any], unit: shards.Unit) -> shards.Estimated:
        """The `Estimated` of a unit, whose state is tensors.

        Args:
            theta: dict of arrays or tensors.
            state: flat list of arrays or tensors, of the unit's shard and program.
            unit: `Unit`.
        """
        start = time.perf_counter()
        if unit.program not in self._structures:
            self.init_state(theta, unit.shard, unit.program)
        gradient, after, metrics = self._estimate(
            unit.program,
            _tensors(theta),
            [tf.convert_to_tensor(x) for x in state],
            shards.seed_of(self._seed, unit.shard),
            tf.constant(unit.step, tf.int64),
        )
        # On an accelerator, the call above returns before the work is done.
        found = {name: value.numpy() for name, value in gradient.items()}
        told = {name: float(value) for name, value in metrics.items()}
        is_new = unit.program not in self._used
        self._used.add(unit.program)
        return shards.Estimated(found, after, told, time.perf_counter() - start, is_new)

    @tf.function(autograph=False)
    def _init_state(self, theta: Theta, seed: Tensor, index: int) -> Any:
        # Not compiled: it runs once.
        length = self._length(tf.constant(0, tf.int64))
        seed = random.fold_in(random.fold_in(seed, 0), index)
        return self._estimators[index].init_state(theta, seed, length)

    @tf.function(jit_compile=True, autograph=False)
    def _estimate(
        self, index: int, theta: Theta, state: list[Tensor], seed: Tensor, step: Tensor
    ) -> tuple[Tensors, list[Tensor], Tensors]:
        estimator = self._estimators[index]
        packed = tf.nest.pack_sequence_as(self._structures[index], state)
        length = self._length(step)
        seed = random.fold_in(random.fold_in(seed, 1), step)
        made = estimator.estimate(theta, packed, seed, length)
        gradient = {name: g for name, g in made.gradient.items() if name in estimator.trained}
        metrics = {**made.metrics, "unroll_length": tf.cast(length, tf.float32)}
        return gradient, tf.nest.flatten(made.state), metrics

    def _length(self, step: Tensor) -> Any:
        """Inner steps of the problems that begin at this outer step, the same in all shards."""
        seed = random.fold_in(random.fold_in(self._seed, 2), step)
        return self._curriculum.length(step, seed)


def _tensors(theta: Mapping[str, Any]) -> Tensors:
    return {name: tf.convert_to_tensor(value) for name, value in theta.items()}
