"""A training step by step: gradients, steps, states and losses."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lopt_keras import rules
from lopt_keras.rules.base import Signals, State
from lopt_keras.types import Array, Arrays, Shapes, Tensor, Tensors, Theta
from lopt_keras.validation import check_integer
from meta import random
from meta.analysis import programs
from meta.analysis.subject import Subject
from meta.inner import unroll
from meta.tasks.base import Task


class Recording(NamedTuple):
    """What happened in T steps on P problems. All lists have an entry for each tensor.

    Attributes:
        grads, updates: lists of `[T, P, *shape]`.
        params: the parameters before each step, a list of `[T, P, *shape]`.
        states: the rule's state after each step that was kept, a `State` of `[K, P, ...]`.
        kept_steps: `[K]`, which steps these were, counted from 0.
        controls: what a controller chose, dict of `[T, P, tensors]`, empty of a rule without one.
        train_loss, kept_train_loss, validation_loss: as `unroll.Trajectory`, `[T, P]`.
        total_steps: what the rule knew, 0 for nothing.
    """

    grads: list[Array]
    updates: list[Array]
    params: list[Array]
    states: Any
    kept_steps: Array
    controls: Arrays
    train_loss: Array
    kept_train_loss: Array
    validation_loss: Array
    total_steps: int

    @property
    def kinds(self) -> list[str]:
        """What each tensor is: list of "scalar", "vector", "matrix" or "kernel" (rank 3 and more).

        Matrices with one row or one column count as vectors.
        """
        return [kind_of(x.shape[2:]) for x in self.params]

    @property
    def diverged(self) -> Array:
        """`[P]` booleans: some loss is not finite."""
        return ~(np.isfinite(self.train_loss) & np.isfinite(self.kept_train_loss)).all(axis=0)


def kind_of(shape: Sequence[int]) -> str:
    """ "scalar", "vector", "matrix" or "kernel", the kind of a tensor of that shape."""
    longer = [size for size in shape if size > 1]
    if len(longer) < 2:
        return "vector" if longer else "scalar"
    return "matrix" if len(shape) == 2 else "kernel"


def record(
    subject: Subject,
    task: Task,
    num_steps: int,
    seed: Tensor,
    num_problems: int = 1,
    signals_known: bool = False,
    keep_states: int = 1,
) -> Recording:
    """Trains, and keeps what happens.

    Args:
        subject: `Subject`.
        task: `Task`.
        num_steps: T.
        seed: `[2]` int32, of the problems and their batches.
        num_problems: P.
        signals_known: whether the rule hears the number of steps, and validation losses.
        keep_states: every how many steps the state is kept.

    Returns:
        `Recording`, of NumPy arrays.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """
    for name, value in (
        ("num_steps", num_steps),
        ("num_problems", num_problems),
        ("keep_states", keep_states),
    ):
        check_integer(name, value, low=1)
    rule, theta = _Observed(subject.rule), subject.copies(num_problems)
    total_steps = num_steps if signals_known else 0

    def begin() -> unroll.InnerState:
        seeds = random.fold_in(seed, 0)
        return unroll.begin(rule, task, theta, seeds, num_problems, total_steps, signals_known)

    def step(inner: unroll.InnerState, i: Tensor) -> tuple[unroll.Trajectory, unroll.InnerState]:
        batches = random.fold_in(seed, 1)
        return unroll.run(rule, task, theta, inner, batches, 1, num_problems, "validation", first=i)

    # Not by XLA: a few hundred steps take less time than to compile one.
    inner, rows, states = programs.traced(begin)(), [], []
    step = programs.traced(step, inner, tf.constant(0))
    for i in range(num_steps):
        params = inner.params
        trajectory, inner = step(inner, tf.constant(i))
        seen, state = inner.rule_state.shared, inner.rule_state.shared["state"]
        rows.append(_numpy((params, seen["grads"], seen["updates"], seen["controls"], trajectory)))
        if (i + 1) % keep_states == 0:
            states.append(_numpy(state))
    params, grads, updates, controls, trajectory = _stacked(rows)
    losses = {
        "train_loss": trajectory.train_loss[:, 0],
        "kept_train_loss": trajectory.kept_train_loss[:, 0],
        "validation_loss": trajectory.outer_loss[:, 0],
    }
    return Recording(
        grads=grads,
        updates=updates,
        params=params,
        states=_stacked(states) if states else None,
        kept_steps=np.arange(keep_states - 1, num_steps, keep_states),
        controls=controls,
        total_steps=total_steps,
        **losses,
    )


@dataclasses.dataclass(frozen=True)
class _Observed(rules.UpdateRule):
    """A rule that keeps its last gradients, updates and controls as state.

    So that `unroll` takes its steps, with all that belongs to them.
    """

    rule: rules.UpdateRule

    signals = property(lambda self: self.rule.signals)
    averages = property(lambda self: self.rule.averages)

    def theta_shapes(self) -> Shapes:
        return self.rule.theta_shapes()

    def init_theta(self, seed: int = 0) -> Arrays:
        return self.rule.init_theta(seed)

    def init_tensor_state(self, theta: Theta, param: Tensor, name: str) -> Tensors:
        return self.rule.init_tensor_state(theta, param, name)

    def update_tensor(
        self,
        theta: Theta,
        state: Tensors,
        message: Tensors,
        grad: Tensor,
        param: Tensor,
        signals: Signals,
    ) -> tuple[Tensor, Tensors]:
        return self.rule.update_tensor(theta, state, message, grad, param, signals)

    def init_state(
        self, theta: Theta, params: Sequence[Tensor], names: Sequence[str] | None = None
    ) -> State:
        state = self.rule.init_state(theta, params, names)
        zeros = [tf.zeros_like(param) for param in params]
        signals = rules.Signals.silent(tf.zeros(params[0].shape[0], tf.int32))
        controls = self._controls(theta, state, zeros, params, signals, names)
        return self._with(state, zeros, zeros, tf.nest.map_structure(tf.zeros_like, controls))

    def update(
        self,
        theta: Theta,
        state: State,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        signals: Signals,
        names: Sequence[str] | None = None,
    ) -> tuple[list[Tensor], State]:
        state = state.shared["state"]
        updates, new = self.rule.update(theta, state, grads, params, signals, names)
        controls = self._controls(theta, state, grads, params, signals, names)
        return updates, self._with(new, grads, updates, controls)

    def average_weight(self, state: State) -> Tensor:
        return self.rule.average_weight(state.shared["state"])

    def _controls(self, *arguments: Any) -> Tensors:
        if not hasattr(self.rule, "controls"):
            return {}
        return self.rule.controls(*arguments)

    def _with(
        self, state: State, grads: Sequence[Tensor], updates: Sequence[Tensor], controls: Tensors
    ) -> State:
        seen = {"state": state, "grads": grads, "updates": updates, "controls": controls}
        return rules.State([], seen)


def _numpy(nest: Any) -> Any:
    return tf.nest.map_structure(lambda x: x.numpy(), nest)


def _stacked(rows: Sequence[Any]) -> Any:
    """A list of equal nests as one nest of arrays with a leading axis."""
    return tf.nest.map_structure(lambda *x: np.stack(x), *rows)
