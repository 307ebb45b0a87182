"""The inner loop: T steps of an update rule on a task, as one XLA program.

All functions are pure. Call them inside a `tf.function(jit_compile=True)`. P particles run
side by side, each with its own theta. Q problems (initial parameters and batches) are drawn.
Particle i works on problem i modulo Q. So both halves of an antithetic pair, or all
hyperparameters of a grid, see the same problems.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import features, gating, rules
from lopt_keras.rules.base import State, UpdateRule
from lopt_keras.types import Tensor, Theta
from meta import random
from meta.tasks.base import Task

_VALIDATION_EVERY = 10


class InnerState(NamedTuple):
    """Where P inner problems are.

    Attributes:
        params: list of `[P, *shape]`.
        averages: running averages of the params, a list like it, or empty if the rule does
            not average.
        rule_state: the update rule's state.
        step: `[P]` int32, steps taken so far.
        total_steps: `[P]` float32, the number of steps of the whole problem, as the rule
            knows it; 0 if it does not know it.
        validation_known: `[P]` bool, whether the rule receives validation losses.
        setting: of the task, which variant of it each problem is: nest of `[P, ...]`.
    """

    params: list[Tensor]
    averages: list[Tensor]
    rule_state: State
    step: Tensor
    total_steps: Tensor
    validation_known: Tensor
    setting: dict[str, Any]

    @property
    def kept(self) -> list[Tensor]:
        """The parameters that a user keeps: the averages if there are some."""
        return self.averages or self.params


class Trajectory(NamedTuple):
    """What happened during T steps of P particles; each entry is `[T, P]`.

    Attributes:
        train_loss: loss on the training batch of the step, before it.
        kept_train_loss: the same of the parameters that are kept (`InnerState.kept`).
        outer_loss: the task's score of the loss of the kept parameters on a fresh batch of
            the outer split, before the step (on the training batch itself, where that split
            is "train").
        step_size: root mean square of the step over all parameters.
    """

    train_loss: Tensor
    kept_train_loss: Tensor
    outer_loss: Tensor
    step_size: Tensor


def begin(
    rule: UpdateRule,
    task: Task,
    theta: Theta,
    seed: Tensor,
    num_problems: int,
    total_steps: Any = 0,
    validation_known: Any = True,
) -> InnerState:
    """`InnerState` before the first step.

    Args:
        rule: `UpdateRule`.
        task: `Task`.
        theta: dict of `[P, ...]`, P a multiple of `num_problems`.
        seed: `[2]` int32.
        num_problems: Q.
        total_steps: a number, scalar or `[P]`: what the rule is told of the horizon,
            0 for nothing.
        validation_known: a bool, scalar or `[P]`: whether it hears validation losses.
    """
    particles = _num_particles(theta)
    seeds = random.split(seed, 2)
    setting = task.draw(seeds[0], num_problems)
    params = task.init(seeds[1], num_problems, setting)
    params, setting = _repeat((params, setting), particles // num_problems)
    total_steps = tf.broadcast_to(tf.cast(total_steps, tf.float32), [particles])
    step = tf.zeros(particles, tf.int32)
    validation_known = tf.broadcast_to(validation_known, [particles])
    state = rule.init_state(theta, params)
    averages = list(params) if rule.averages else []
    return InnerState(params, averages, state, step, total_steps, validation_known, setting)


def run(
    rule: UpdateRule,
    task: Task,
    theta: Theta,
    inner: InnerState,
    seed: Tensor,
    length: int,
    num_problems: int,
    outer_split: str = "train",
    first: Any = 0,
    num_steps: Any = None,
) -> tuple[Trajectory, InnerState]:
    """Takes `length` steps with every particle.

    The rule receives the training loss, and the horizon that `begin` was given. Every tenth
    step it receives the loss on a fresh validation batch, if it uses this loss and
    `validation_known` holds. If the outer loss is a validation loss, it is that loss.

    A particle whose gradient is not usable does not move in that step, as with
    `LearnedOptimizer`. Under a gradient tape, such a step is a constant, and so is one whose
    loss or update is not finite: it passes on neither a gradient nor a NaN. Only the
    `outer_loss` of the trajectory has a gradient.

    Args:
        rule, task, theta, num_problems: as for `begin`.
        inner: `InnerState`.
        seed: `[2]` int32; step i draws its batches from it and `first + i`.
        length: T, a Python int.
        outer_split: "train", "validation" or "test".
        first: where this run stands in a longer one, an integer or scalar tensor.
        num_steps: scalar int32 tensor, at most `length`, to take fewer steps; the
            trajectory is zero from there on. Defaults to `length`.

    Returns:
        `(Trajectory, InnerState)`.
    """
    num_steps = length if num_steps is None else num_steps

    def body(i: Tensor, inner: Any, trajectory: Any) -> tuple[Tensor, InnerState, Trajectory]:
        step_seed = random.fold_in(seed, first + i)
        inner, measured = _step(rule, task, theta, inner, step_seed, num_problems, outer_split)
        written = [array.write(i, x) for array, x in zip(trajectory, measured, strict=True)]
        return i + 1, inner, Trajectory(*written)

    empty = [
        tf.TensorArray(tf.float32, length, element_shape=[_num_particles(theta)])
        for _ in Trajectory._fields
    ]
    _, inner, trajectory = tf.while_loop(
        lambda i, *_: i < num_steps,
        body,
        (tf.constant(0), inner, Trajectory(*empty)),
        maximum_iterations=length,
    )
    return Trajectory(*[array.stack() for array in trajectory]), inner


def evaluate(
    task: Task, inner: InnerState, seed: Tensor, split: str, num_batches: int, num_problems: int
) -> Tensor:
    """The mean score of the parameters over fresh batches.

    Args:
        task: `Task`.
        inner: `InnerState`.
        seed: `[2]` int32; batch i is drawn from it and i.
        split: "train", "validation" or "test".
        num_batches: a Python int.
        num_problems: as for `begin`.

    Returns:
        `[P]`.
    """
    particles = inner.step.shape[0]
    problems = tf.nest.map_structure(lambda x: x[:num_problems], inner.setting)

    def body(i: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        data = task.batch(split, random.fold_in(seed, i), num_problems, problems)
        data = _repeat(data, particles // num_problems)
        loss = task.loss(inner.kept, data, inner.setting)
        return i + 1, total + task.score(loss, inner.setting)

    start = (tf.constant(0), tf.zeros(particles))
    total = tf.while_loop(lambda i, _: i < num_batches, body, start)[1]
    return total / num_batches


def _step(
    rule: UpdateRule,
    task: Task,
    theta: Theta,
    inner: InnerState,
    seed: Tensor,
    num_problems: int,
    outer_split: str,
) -> tuple[InnerState, Trajectory]:
    copies = _num_particles(theta) // num_problems
    params, _, state, step, total_steps, validation_known, setting = inner

    def batch(split: str, seed: Tensor) -> Any:
        problems = tf.nest.map_structure(lambda x: x[:num_problems], setting)
        return _repeat(task.batch(split, seed, num_problems, problems), copies)

    def is_smooth() -> Tensor:
        moved = gating.gradients_are_usable(updates)
        return usable & moved & tf.math.is_finite(train_loss) & ~overflows

    # What the step reads. Whether gradients return from it is known further down.
    read_theta, read_params, read_state = _gated((theta, params, state), is_smooth)
    seeds = random.split(seed, 3)
    data = batch("train", seeds[0])
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(read_params)
        train_loss = task.loss(read_params, data, setting)
    # The particles do not interact: each gets the gradient of its own loss.
    grads = tape.gradient(
        train_loss, read_params, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    grads = task.seen_gradient(grads, data, setting)
    kept_train_loss = train_loss
    if inner.averages:
        tested = _gated(inner.averages, lambda: tf.math.is_finite(kept_train_loss))
        kept_train_loss = task.loss(tested, data, setting)
    outer_loss = kept_train_loss
    if outer_split != "train":
        held_out = batch(outer_split, seeds[1])
        tested = _gated(inner.kept, lambda: tf.math.is_finite(outer_loss))
        outer_loss = task.loss(tested, held_out, setting)

    heard = {
        "total_steps": rules.Signal.where(total_steps > 0, total_steps),
        "train_loss": rules.Signal.where(True, train_loss),
    }
    overflows = tf.zeros(_num_particles(theta), tf.bool)
    if "validation_loss" in rule.signals:
        if outer_split == "validation":
            # Measured before the step: the rule's knowledge of it can lower only later losses.
            observed = outer_loss
        else:
            held_out = batch("validation", seeds[2])
            observed = task.loss(read_params, held_out, setting)
        due = validation_known & (step % _VALIDATION_EVERY == 0)
        overflows = due & tf.math.is_inf(observed)
        heard["validation_loss"] = rules.Signal.where(due, observed)
    signals = rules.Signals.silent(step, **heard)
    updates, new_state = rule.update(read_theta, read_state, grads, read_params, signals)
    usable = gating.gradients_are_usable(grads)
    updates = [gating.select(usable, update, tf.zeros_like(update)) for update in updates]
    state = tf.nest.map_structure(lambda n, o: gating.select(usable, n, o), new_state, state)
    params = [param + update for param, update in zip(params, updates, strict=True)]
    step = step + tf.cast(usable, tf.int32)
    averages = _averaged(rule, inner.averages, params, state, usable)
    inner = inner._replace(params=params, averages=averages, rule_state=state, step=step)
    # The root has no finite slope where nothing moved.
    step_size = tf.stop_gradient(_root_mean_square(updates))
    score = task.score(outer_loss, setting)
    losses = tf.stop_gradient(train_loss), tf.stop_gradient(kept_train_loss)
    return inner, Trajectory(*losses, score, step_size)


def _averaged(
    rule: UpdateRule,
    averages: Sequence[Tensor],
    params: Sequence[Tensor],
    state: Any,
    usable: Tensor,
) -> list[Tensor]:
    """The running averages after a step; those of a particle that stayed are as they were."""
    if not averages:
        return []
    weight = tf.where(usable, rule.average_weight(state), 0.0)
    return [
        average + features.broadcast_over(weight, len(param.shape) - 1) * (param - average)
        for average, param in zip(averages, params, strict=True)
    ]


def _gated(nest: Any, is_open: Callable[[], Tensor]) -> Any:
    """The same tensors, to which gradients return only for particles that pass.

    A tape multiplies by the Jacobian even where what comes back is zero, and zero
    times infinity is NaN: a `tf.where` around the results alone does not stop it.

    Args:
        nest: of `[P, ...]`.
        is_open: function that returns `[P]` booleans, called when the gradient is
            taken, so that it may speak of what was computed from `nest`.
    """

    @tf.custom_gradient
    def identity(*tensors: Tensor) -> Any:
        def backward(*upstream: Tensor) -> list[Tensor]:
            return [gating.select(is_open(), dy, tf.zeros_like(dy)) for dy in upstream]

        return [tf.identity(x) for x in tensors], backward

    flat = tf.nest.flatten(nest)
    floats = [i for i, x in enumerate(flat) if x.dtype.is_floating]
    for i, x in zip(floats, identity(*[flat[i] for i in floats]), strict=True):
        flat[i] = x
    return tf.nest.pack_sequence_as(nest, flat)


def _root_mean_square(tensors: Sequence[Tensor]) -> Tensor:
    """Over all entries of all tensors `[P, *shape]`: `[P]`."""
    total = sum(tf.reduce_sum(tf.square(x), axis=range(1, x.shape.rank)) for x in tensors)
    count = sum(x.shape[1:].num_elements() for x in tensors)
    return tf.sqrt(total / count)


def _num_particles(theta: Theta) -> int:
    return next(iter(theta.values())).shape[0]


def _repeat(nest: Any, copies: int) -> Any:
    """`[Q, ...]` -> `[copies * Q, ...]`, one whole copy after the other."""

    def repeated(x: Tensor) -> Tensor:
        # A concatenation would have XLA compute each entry of a copy on its own.
        copied = tf.broadcast_to(x, [copies, *x.shape])
        return tf.reshape(copied, [copies * x.shape[0], *x.shape[1:]])

    return tf.nest.map_structure(repeated, nest)
