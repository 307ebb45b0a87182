"""The inner loop: T steps of an update rule on a task, as one XLA program.

Pure functions, to be called inside a `tf.function(jit_compile=True)`. P particles
run side by side, each with its own theta; Q problems (initial parameters and
batches) are drawn, and particle i works on problem i modulo Q. Both halves of an
antithetic pair, or all hyperparameters of a grid, then see the same problems.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import features, rules
from meta import random


class InnerState(NamedTuple):
    """Where P inner problems are.

    Attributes:
        params: list of `[P, *shape]`.
        rule_state: the update rule's state.
        step: `[P]` int32, steps taken so far.
    """

    params: Any
    rule_state: Any
    step: Any


class Trajectory(NamedTuple):
    """What happened during T steps of P particles; each entry is `[T, P]`.

    Attributes:
        train_loss: loss on the training batch of the step, before it.
        outer_loss: loss on a fresh batch of the outer split, before the step
            (the training loss itself, where that split is "train").
        step_size: root mean square of the step over all parameters.
    """

    train_loss: Any
    outer_loss: Any
    step_size: Any


def begin(rule, task, theta, seed, num_problems):
    """`InnerState` before the first step.

    Args:
        rule: `UpdateRule`.
        task: `Task`.
        theta: dict of `[P, ...]`, P a multiple of `num_problems`.
        seed: `[2]` int32.
        num_problems: Q.
    """
    particles = _num_particles(theta)
    params = _repeat(task.init(seed, num_problems), particles // num_problems)
    return InnerState(params, rule.init_state(theta, params), tf.zeros(particles, tf.int32))


def run(rule, task, theta, inner, seed, length, num_problems, outer_split="train"):
    """Takes `length` steps with every particle.

    A particle whose gradient is not usable stays where it is in that step, as
    `LearnedOptimizer` would.

    Args:
        rule, task, theta, num_problems: as for `begin`.
        inner: `InnerState`.
        seed: `[2]` int32; step i draws its batches from it and i.
        length: T, a Python int.
        outer_split: "train", "validation" or "test".

    Returns:
        `(Trajectory, InnerState)`.
    """

    def body(i, inner, trajectory):
        inner, measured = _step(
            rule, task, theta, inner, random.fold_in(seed, i), num_problems, outer_split
        )
        written = [array.write(i, x) for array, x in zip(trajectory, measured, strict=True)]
        return i + 1, inner, Trajectory(*written)

    empty = [
        tf.TensorArray(tf.float32, length, element_shape=[_num_particles(theta)])
        for _ in Trajectory._fields
    ]
    _, inner, trajectory = tf.while_loop(
        lambda i, *_: i < length,
        body,
        (tf.constant(0), inner, Trajectory(*empty)),
        maximum_iterations=length,
    )
    return Trajectory(*[array.stack() for array in trajectory]), inner


def _step(rule, task, theta, inner, seed, num_problems, outer_split):
    copies = _num_particles(theta) // num_problems
    params, state, step = inner
    data = _repeat(task.batch("train", random.fold_in(seed, 0), num_problems), copies)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(params)
        train_loss = task.loss(params, data)
    # The particles do not interact: each gets the gradient of its own loss.
    grads = tape.gradient(train_loss, params, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    outer_loss = train_loss
    if outer_split != "train":
        held_out = task.batch(outer_split, random.fold_in(seed, 1), num_problems)
        outer_loss = task.loss(params, _repeat(held_out, copies))

    signals = rules.Signals.silent(step, train_loss=train_loss)
    updates, new_state = rule.update(theta, state, grads, params, signals)
    usable = features.gradients_are_usable(grads)
    updates = [features.select(usable, update, tf.zeros_like(update)) for update in updates]
    state = tf.nest.map_structure(lambda n, o: features.select(usable, n, o), new_state, state)
    params = [param + update for param, update in zip(params, updates, strict=True)]
    inner = InnerState(params, state, step + tf.cast(usable, tf.int32))
    return inner, Trajectory(train_loss, outer_loss, _root_mean_square(updates))


def _root_mean_square(tensors):
    """Over all entries of all tensors `[P, *shape]`: `[P]`."""
    total = sum(tf.reduce_sum(tf.square(x), axis=range(1, x.shape.rank)) for x in tensors)
    count = sum(x.shape[1:].num_elements() for x in tensors)
    return tf.sqrt(total / count)


def _num_particles(theta):
    return next(iter(theta.values())).shape[0]


def _repeat(nest, copies):
    """`[Q, ...]` -> `[copies * Q, ...]`, one whole copy after the other."""
    return tf.nest.map_structure(lambda x: tf.concat([x] * copies, axis=0), nest)
