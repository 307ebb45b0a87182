"""Seconds of a step, on one problem.

A step is a gradient and an update. The gradient is the same for all optimizers of a task,
so it is timed once; each update is timed alone: so many programs that hold the
gradient would take minutes to compile. All are called in turns, and the median is taken,
so that another load on the machine meets all of them alike.
"""

import time

import keras
import numpy as np
import tensorflow as tf

from lopt_keras import rules
from meta import random

_ROUNDS = 7
_SECONDS = 0.03
_MOST_STEPS = 4096


def measure(task, candidates, total_steps):
    """The seconds of a step of each optimizer.

    Args:
        task: `Task`; of its variants, the first.
        contestants: list; each an update rule with its theta as a pair, or a function that
            returns a Keras optimizer.
        total_steps: what rules hear of the horizon.

    Returns:
        List of floats.
    """
    seed = random.seed(0)
    setting = task.draw(seed, 1, tf.zeros(1, tf.int32))
    params = task.init(seed, 1, setting)
    # In each step another batch; in each update another gradient: XLA moves what is the
    # same in all steps out of the loop.
    programs = [_gradient_loop(task, setting, params)]
    for candidate in candidates:
        if isinstance(candidate, tuple):
            programs.append(_rule_loop(*candidate, params, total_steps))
        else:
            programs.append(_keras_loop(candidate(), params))
    gradient, *updates = _interleaved(programs)
    return [gradient + update for update in updates]


def _interleaved(programs):
    """The median seconds of a step of each, a function of the number of steps."""
    steps = [_enough_steps(program) for program in programs]
    rounds = [
        [_seconds(program, n) for program, n in zip(programs, steps, strict=True)]
        for _ in range(_ROUNDS)
    ]
    return np.median(rounds, axis=0).tolist()


def _enough_steps(program):
    """How many steps take long enough for the cost of a call not to count."""
    for _ in range(3):  # The first compiles, and the second is still slow.
        program(tf.constant(16))
    steps = 16
    while steps < _MOST_STEPS and steps * min(_seconds(program, steps) for _ in "ab") < _SECONDS:
        steps *= 4
    return steps


def _seconds(program, steps):
    start = time.perf_counter()
    tf.nest.map_structure(lambda x: x.numpy(), program(tf.constant(steps)))
    return (time.perf_counter() - start) / steps


def _loop(body, state):
    """A compiled function that takes so many steps of `body`, from step and state to state."""

    @tf.function(jit_compile=True, autograph=False)
    def program(steps, state):
        start = tf.constant(0), state
        return tf.while_loop(lambda i, _: i < steps, lambda i, s: (i + 1, body(i, s)), start)[1][0]

    compiled = program.get_concrete_function(tf.constant(0), state)
    return lambda steps: compiled(steps, *tf.nest.flatten(state))


def _gradient_loop(task, setting, params):
    def body(i, params):
        data = task.batch("train", random.fold_in(random.seed(1), i), 1, setting)
        with tf.GradientTape() as tape:
            tape.watch(params)
            loss = task.loss(params, data, setting)
        grads = tape.gradient(loss, params, unconnected_gradients="zero")
        grads = task.seen_gradient(grads, data, setting)
        return [p - 1e-9 * g for p, g in zip(params, grads, strict=True)]

    return _loop(body, params)


def _rule_loop(rule, theta, params, total_steps):
    theta = {name: tf.constant(value)[None] for name, value in theta.items()}
    grads = _like_gradients(params)

    def body(i, carried):
        params, state = carried
        known = {
            "total_steps": tf.constant([total_steps], tf.float32),
            "train_loss": 1.0 / (1.0 + tf.cast(i, tf.float32)[None]),
        }
        signals = rules.Signals.silent(i[None], **known)
        updates, state = rule.update(theta, state, _varied(grads, i), params, signals)
        return [p + u for p, u in zip(params, updates, strict=True)], state

    return _loop(body, (params, rule.init_state(theta, params)))


def _keras_loop(optimizer, params):
    variables = [keras.Variable(p[0]) for p in params]
    grads = [g[0] for g in _like_gradients(params)]
    optimizer.build(variables)

    @tf.function(jit_compile=True, autograph=False)
    def program(steps):
        def body(i):
            optimizer.apply(_varied(grads, i), variables)
            return i + 1

        tf.while_loop(lambda i: i < steps, body, [tf.constant(0)])
        return tf.identity(variables[0].value)

    return program


def _like_gradients(params):
    return [random.normal(p.shape, random.fold_in(random.seed(2), i)) for i, p in enumerate(params)]


def _varied(grads, i):
    return [g * (1.0 + 1e-3 * tf.cast(i, tf.float32)) for g in grads]
