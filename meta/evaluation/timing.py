"""Seconds of a step, on one problem.

A step is a gradient and an update. The gradient is the same for all optimizers of a task, so
it is timed once. Each update is timed alone, because as many programs with the gradient would
take minutes to compile. All are called in turns, so that other load on the machine affects
all of them alike. The result is the median.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from lopt_keras import rules
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Tensor, Theta
from meta import random
from meta.tasks.base import Task

_ROUNDS = 7
_SECONDS = 0.03
_MOST_STEPS = 4096

Timed: TypeAlias = tuple[UpdateRule, Theta] | Callable[[], Any]
"""An update rule with its theta, or a function that returns a Keras optimizer."""

Program: TypeAlias = Callable[[Tensor], Any]
"""From a number of steps, a scalar, to what they lead to."""


def measure(task: Task, candidates: Sequence[Timed], total_steps: int) -> list[float]:
    """The seconds of a step of each optimizer.

    Args:
        task: `Task`; of its variants, the first.
        candidates: list; each an update rule with its theta as a pair, or a function that
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


def _interleaved(programs: Sequence[Program]) -> list[float]:
    """The median seconds of a step of each, a function of the number of steps."""
    steps = [_enough_steps(program) for program in programs]
    rounds = [
        [_seconds(program, n) for program, n in zip(programs, steps, strict=True)]
        for _ in range(_ROUNDS)
    ]
    return np.median(rounds, axis=0).tolist()


def _enough_steps(program: Program) -> int:
    """How many steps take long enough for the cost of a call not to count."""
    for _ in range(3):  # The first compiles, and the second is still slow.
        program(tf.constant(16))
    steps = 16
    while steps < _MOST_STEPS and steps * min(_seconds(program, steps) for _ in "ab") < _SECONDS:
        steps *= 4
    return steps


def _seconds(program: Program, steps: int) -> float:
    start = time.perf_counter()
    tf.nest.map_structure(lambda x: x.numpy(), program(tf.constant(steps)))
    return (time.perf_counter() - start) / steps


def _loop(body: Callable[[Tensor, Any], Any], state: Any) -> Program:
    """A compiled function that takes so many steps of `body`, from step and state to state."""

    @tf.function(jit_compile=True, autograph=False)
    def program(steps: Tensor, state: Any) -> Any:
        start = tf.constant(0), state
        return tf.while_loop(lambda i, _: i < steps, lambda i, s: (i + 1, body(i, s)), start)[1][0]

    compiled = program.get_concrete_function(tf.constant(0), state)
    return lambda steps: compiled(steps, *tf.nest.flatten(state))


def _gradient_loop(task: Task, setting: Mapping[str, Any], params: Sequence[Tensor]) -> Program:
    def body(i: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
        data = task.batch("train", random.fold_in(random.seed(1), i), 1, setting)
        with tf.GradientTape() as tape:
            tape.watch(params)
            loss = task.loss(params, data, setting)
        grads = tape.gradient(loss, params, unconnected_gradients="zero")
        grads = task.seen_gradient(grads, data, setting)
        return [p - 1e-9 * g for p, g in zip(params, grads, strict=True)]

    return _loop(body, params)


def _rule_loop(
    rule: UpdateRule, theta: Theta, params: Sequence[Tensor], total_steps: int
) -> Program:
    theta = {name: tf.constant(value)[None] for name, value in theta.items()}
    grads = _like_gradients(params)

    def body(i: Tensor, carried: Any) -> Any:
        params, state = carried
        known = {
            "total_steps": tf.constant([total_steps], tf.float32),
            "train_loss": 1.0 / (1.0 + tf.cast(i, tf.float32)[None]),
        }
        signals = rules.Signals.silent(i[None], **known)
        updates, state = rule.update(theta, state, _varied(grads, i), params, signals)
        return [p + u for p, u in zip(params, updates, strict=True)], state

    return _loop(body, (params, rule.init_state(theta, params)))


def _keras_loop(optimizer: keras.optimizers.Optimizer, params: Sequence[Tensor]) -> Program:
    variables = [keras.Variable(p[0]) for p in params]
    grads = [g[0] for g in _like_gradients(params)]
    optimizer.build(variables)

    @tf.function(jit_compile=True, autograph=False)
    def program(steps: Tensor) -> Tensor:
        def body(i: Tensor) -> Tensor:
            optimizer.apply(_varied(grads, i), variables)
            return i + 1

        tf.while_loop(lambda i: i < steps, body, [tf.constant(0)])
        return tf.identity(variables[0].value)

    return program


def _like_gradients(params: Sequence[Tensor]) -> list[Tensor]:
    return [random.normal(p.shape, random.fold_in(random.seed(2), i)) for i, p in enumerate(params)]


def _varied(grads: Sequence[Tensor], i: Tensor) -> list[Tensor]:
    return [g * (1.0 + 1e-3 * tf.cast(i, tf.float32)) for g in grads]
