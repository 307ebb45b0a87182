"""The outer steps of all members, as one program."""

import functools
from typing import Any

import tensorflow as tf

from lopt_keras import features, gating, rules
from lopt_keras.rules.base import State, UpdateRule
from lopt_keras.types import Tensor, Tensors
from lopt_keras.validation import check_integer
from meta import random
from meta.estimators.base import Estimator
from meta.population.eligible import check_rule
from meta.population.members import Hyperparameters, Members, gather
from meta.population.scoring import Scoring

_ESTIMATED = ("meta_loss", "diverged", "inner_step_size")
METRICS = (*_ESTIMATED, "outer_step_size")
"""The names of what `Training.advance` measures."""


class Training:
    """Moves the theta of every member by the update rule of its trainer.

    A trainer is an index into a pool of thetas of the rule that trains: the population
    itself, or a pool that stays as it is. The trainers' thetas lie on the particle axis of
    the rule, so that a change of trainer is a change of an index, and compiles nothing.

    Training is a sequence of problems of `outer_horizon` outer steps. The trainer begins
    each of them with a fresh state and counts its steps from 0, as it does on the inner
    problems: to a rule that was only ever trained for tens of steps, step 10,000 is unknown.
    As its training loss it hears the meta-loss.

    Args:
        estimator: `Estimator` of the meta-gradient of one member.
        outer_horizon: outer steps.
        trainer_rule: `UpdateRule` of the trainers. Defaults to that of the members.

    Attributes:
        estimator: as given.
        scoring: `Scoring` of the members.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected; if the
            members' rule cannot train (`check_rule`).
    """

    def __init__(
        self, estimator: Estimator, outer_horizon: int, trainer_rule: UpdateRule | None = None
    ) -> None:
        check_integer("outer_horizon", outer_horizon, low=1)
        check_rule(estimator.rule)
        self.estimator = estimator
        self.scoring = Scoring(estimator)
        self._outer_horizon = outer_horizon
        self._rule = trainer_rule or estimator.rule

    def init_state(self, theta: Tensors, pool: Tensors, trainers: Tensor) -> State:
        """The state in which the trainers begin: `State` of `[N, ...]`."""
        return self._rule.init_state(gather(pool, trainers), list(theta.values()))

    @tf.function(autograph=False)
    def init_workers(self, theta: Tensors, hyperparameters: Hyperparameters, seed: Tensor) -> Any:
        """The workers of all members before their first estimate. Not compiled.

        Args:
            theta: dict of `[N, ...]`.
            hyperparameters: `Hyperparameters`.
            seed: `[2]` int32.
        """
        workers = []
        for i in range(next(iter(theta.values())).shape[0]):
            own = tf.nest.map_structure(lambda x, i=i: x[i], hyperparameters)
            estimator = self.estimator.with_stddev(own.stddev)
            member = {name: x[i] for name, x in theta.items()}
            length = self._length(own)
            workers.append(estimator.init_state(member, random.fold_in(seed, i), length))
        return tf.nest.map_structure(lambda *x: tf.stack(x), *workers)

    @tf.function(jit_compile=True, autograph=False)
    def advance(
        self, members: Members, pool: Tensors | None, seed: Tensor, first: Tensor, num_steps: Tensor
    ) -> tuple[Members, Tensors]:
        """Takes outer steps.

        Args:
            members: `Members`.
            pool: dict of `[M, ...]`, the trainers' theta; None for the members themselves,
                who then train each other as they are at each step.
            seed: `[2]` int32, of the run; step i draws from it and i.
            first: scalar int32 tensor, outer steps taken before.
            num_steps: scalar int32 tensor.

        Returns:
            `(Members, metrics)`: metrics is a dict from `METRICS` to `[N]`, means over the steps.
        """

        def body(i: Tensor, members: Members, totals: Tensors) -> tuple[Tensor, Members, Tensors]:
            members, metrics = self._step(members, pool, random.fold_in(seed, i), i)
            return i + 1, members, {name: totals[name] + metrics[name] for name in METRICS}

        totals = {name: tf.zeros(members.trainers.shape) for name in METRICS}
        _, members, totals = tf.while_loop(
            lambda i, *_: i < first + num_steps, body, (first, members, totals)
        )
        return members, {k: x / tf.cast(num_steps, tf.float32) for k, x in totals.items()}

    def _step(
        self, members: Members, pool: Tensors | None, seed: Tensor, step: Tensor
    ) -> tuple[Members, Tensors]:
        """`(Members, metrics)` after one outer step."""
        theta, age = members.theta, step % self._outer_horizon
        gradients, workers, metrics = self._estimates(members, seed)
        trainer = gather(theta if pool is None else pool, members.trainers)
        params, grads = list(theta.values()), [gradients[name] for name in theta]
        state = tf.nest.map_structure(
            lambda new, old: tf.where(age == 0, new, old),
            self._rule.init_state(trainer, params),
            members.state,
        )
        count = members.trainers.shape
        signals = rules.Signals.silent(
            tf.fill(count, age),
            total_steps=tf.fill(count, float(self._outer_horizon)),
            train_loss=metrics["meta_loss"],
        )
        updates, new_state = self._rule.update(trainer, state, grads, params, signals)
        updates = [
            update * features.broadcast_over(members.hyperparameters.multiplier, x.shape.rank - 1)
            for update, x in zip(updates, params, strict=True)
        ]
        # A member stays where it is in a step that would not leave it finite.
        usable = gating.gradients_are_usable(grads) & gating.gradients_are_usable(updates)
        updates = [gating.select(usable, x, tf.zeros_like(x)) for x in updates]
        select = functools.partial(gating.select, usable)
        state = tf.nest.map_structure(select, new_state, state)
        squares = [tf.reduce_sum(tf.square(x), axis=range(1, x.shape.rank)) for x in updates]
        metrics["outer_step_size"] = tf.sqrt(sum(squares))
        moved = {name: x + update for (name, x), update in zip(theta.items(), updates, strict=True)}
        return members._replace(theta=moved, state=state, workers=workers), metrics

    def _estimates(self, members: Members, seed: Tensor) -> tuple[Tensors, Any, Tensors]:
        """The meta-gradients `[N, ...]`, the workers, and the metrics `[N]`.

        One member after the other, in a loop that is traced once: each has a standard deviation
        and a length of problems of its own.
        """

        def estimate(arguments: Any) -> tuple[Tensors, Any, Tensors]:
            theta, workers, own, index = arguments
            estimator = self.estimator.with_stddev(own.stddev)
            member_seed, length = random.fold_in(seed, index), self._length(own)
            found = estimator.estimate(theta, workers, member_seed, length)
            return found.gradient, found.state, {name: found.metrics[name] for name in _ESTIMATED}

        specs = tf.nest.map_structure(
            lambda x: tf.TensorSpec(x.shape[1:], x.dtype), (members.theta, members.workers)
        )
        metrics = dict.fromkeys(_ESTIMATED, tf.TensorSpec((), tf.float32))
        indices = tf.range(members.trainers.shape[0])
        everything = members.theta, members.workers, members.hyperparameters, indices
        return tf.map_fn(estimate, everything, fn_output_signature=(*specs, metrics))

    def _length(self, hyperparameters: Hyperparameters) -> Tensor:
        """The inner steps of the problems of a member with these `Hyperparameters` of scalars."""
        steps = tf.round(hyperparameters.length * self.estimator.horizon)
        return tf.cast(tf.maximum(steps, 1.0), tf.int32)
