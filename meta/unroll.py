"""The inner loop: T steps of an update rule on a task, as one XLA program.

Pure functions, to be called inside a `tf.function(jit_compile=True)`. P particles
run side by side, each with its own theta; Q problems (initial parameters and
batches) are drawn, and particle i works on problem i modulo Q. Both halves of an
antithetic pair, or all hyperparameters of a grid, then see the same problems.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import features, gating, rules
from meta import random

_VALIDATION_EVERY = 10


class InnerState(NamedTuple):
    """Where P inner problems are.

    Attributes:
        params: list of `[P, *shape]`.
        averages: running averages of the params, a list like it, or empty if the rule does
            not average.
        rule_state: the update rule's state.
        step: `[P]` int32, steps taken so far.
        total_steps: `[P]` float32, the steps that the problem has in all, which the
            rule may know; 0 if it is not told.
        validation_known: `[P]` bool, whether the rule hears validation losses.
        setting: of the task, which variant of it each problem is: nest of `[P, ...]`.
    """

    params: Any
    averages: Any
    rule_state: Any
    step: Any
    total_steps: Any
    validation_known: Any
    setting: Any

    @property
    def kept(self):
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

    train_loss: Any
    kept_train_loss: Any
    outer_loss: Any
    step_size: Any


def begin(rule, task, theta, seed, num_problems, total_steps=0, validation_known=True):
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
    setting = task.draw(random.fold_in(seed, 0), num_problems)
    params = task.init(random.fold_in(seed, 1), num_problems, setting)
    params, setting = _repeat((params, setting), particles // num_problems)
    total_steps = tf.broadcast_to(tf.cast(total_steps, tf.float32), [particles])
    step = tf.zeros(particles, tf.int32)
    validation_known = tf.broadcast_to(validation_known, [particles])
    state = rule.init_state(theta, params)
    averages = list(params) if rule.averages else []
    return InnerState(params, averages, state, step, total_steps, validation_known, setting)


def run(
    rule,
    task,
    theta,
    inner,
    seed,
    length,
    num_problems,
    outer_split="train",
    first=0,
    num_steps=None,
):
    """Takes `length` steps with every particle.

    The rule hears the training loss, the horizon that `begin` was given, and, if it
    makes use of it and is told, the loss on a fresh validation batch every tenth step
    (the outer loss itself, where that is a validation loss). A
    particle whose gradient is not usable stays where it is in that step, as
    `LearnedOptimizer` would. Under a gradient tape, a particle's step that is not
    usable, or whose loss or update is not finite, is a constant: it passes on neither
    a gradient of its own nor a NaN. Of the trajectory, only `outer_loss` has a gradient.

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

    def body(i, inner, trajectory):
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


def evaluate(task, inner, seed, split, num_batches, num_problems):
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

    def body(i, total):
        data = task.batch(split, random.fold_in(seed, i), num_problems, problems)
        data = _repeat(data, particles // num_problems)
        loss = task.loss(inner.kept, data, inner.setting)
        return i + 1, total + task.score(loss, inner.setting)

    start = (tf.constant(0), tf.zeros(particles))
    total = tf.while_loop(lambda i, _: i < num_batches, body, start)[1]
    return total / num_batches


def _step(rule, task, theta, inner, seed, num_problems, outer_split):
    copies = _num_particles(theta) // num_problems
    params, _, state, step, total_steps, validation_known, setting = inner

    def batch(split, seed):
        problems = tf.nest.map_structure(lambda x: x[:num_problems], setting)
        return _repeat(task.batch(split, seed, num_problems, problems), copies)

    def is_smooth():
        moved = gating.gradients_are_usable(updates)
        return usable & moved & tf.math.is_finite(train_loss) & ~overflows

    # What the step reads. Whether gradients return from it is known further down.
    read_theta, read_params, read_state = _gated((theta, params, state), is_smooth)
    data = batch("train", random.fold_in(seed, 0))
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
        held_out = batch(outer_split, random.fold_in(seed, 1))
        tested = _gated(inner.kept, lambda: tf.math.is_finite(outer_loss))
        outer_loss = task.loss(tested, held_out, setting)

    heard = {
        "total_steps": rules.Signal.where(total_steps > 0, total_steps),
        "train_loss": rules.Signal.where(True, train_loss),
    }
    overflows = tf.zeros(_num_particles(theta), tf.bool)
    if "validation_loss" in rule.signals:
        if outer_split == "validation":
            # Measured before the step, so that to have heard it helps only later losses.
            observed = outer_loss
        else:
            held_out = batch("validation", random.fold_in(seed, 2))
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


def _averaged(rule, averages, params, state, usable):
    """The running averages after a step; those of a particle that stayed are as they were."""
    if not averages:
        return []
    weight = tf.where(usable, rule.average_weight(state), 0.0)
    return [
        average + features.broadcast_over(weight, len(param.shape) - 1) * (param - average)
        for average, param in zip(averages, params, strict=True)
    ]


def _gated(nest, is_open):
    """The same tensors, to which gradients return only for particles that pass.

    A tape multiplies by the Jacobian even where what comes back is zero, and zero
    times infinity is NaN: a `tf.where` around the results alone does not stop it.

    Args:
        nest: of `[P, ...]`.
        is_open: function that returns `[P]` booleans, called when the gradient is
            taken, so that it may speak of what was computed from `nest`.
    """

    @tf.custom_gradient
    def identity(*tensors):
        def backward(*upstream):
            return [gating.select(is_open(), dy, tf.zeros_like(dy)) for dy in upstream]

        return [tf.identity(x) for x in tensors], backward

    flat = tf.nest.flatten(nest)
    floats = [i for i, x in enumerate(flat) if x.dtype.is_floating]
    for i, x in zip(floats, identity(*[flat[i] for i in floats]), strict=True):
        flat[i] = x
    return tf.nest.pack_sequence_as(nest, flat)


def _root_mean_square(tensors):
    """Over all entries of all tensors `[P, *shape]`: `[P]`."""
    total = sum(tf.reduce_sum(tf.square(x), axis=range(1, x.shape.rank)) for x in tensors)
    count = sum(x.shape[1:].num_elements() for x in tensors)
    return tf.sqrt(total / count)


def _num_particles(theta):
    return next(iter(theta.values())).shape[0]


def _repeat(nest, copies):
    """`[Q, ...]` -> `[copies * Q, ...]`, one whole copy after the other."""

    def repeated(x):
        # A concatenation would have XLA compute each entry of a copy on its own.
        copied = tf.broadcast_to(x, [copies, *x.shape])
        return tf.reshape(copied, [copies * x.shape[0], *x.shape[1:]])

    return tf.nest.map_structure(repeated, nest)
