"""What a rule does, in a few bytes."""

import hashlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from lopt_keras.rules.base import UpdateRule
from lopt_keras.signals import Signals
from lopt_keras.types import Tensor, Theta

_SHAPES = ((4, 6), (3, 3, 2, 4), (2, 3, 4), (6,), ())
_STEPS = (*range(12), 150, 151, 1500, 1501, 2500)
_HORIZON = 2000.0
_UNUSABLE = 10
"""In which of the steps a gradient is not finite."""


def fingerprint(rule: UpdateRule, theta: Theta) -> str:
    """Of the steps that a rule takes in a few situations: another one if its code does others.

    With signals and without, beyond the horizon, and after a gradient that is not finite. On one
    machine; on another, sums may be rounded in another way.

    Args:
        rule, theta: `UpdateRule` and its meta-parameters, dict of arrays.

    Returns:
        16 hexadecimal digits.
    """
    content = hashlib.sha256()
    with tf.device("CPU:0"):  # Where all processes round alike.
        theta = {name: tf.constant(x, tf.float32)[None] for name, x in theta.items()}
        for hears in (True, False):
            for update in _updates(rule, theta, hears):
                content.update(np.asarray(update).tobytes())
    return content.hexdigest()[:16]


def _updates(rule: UpdateRule, theta: Theta, hears: bool) -> Iterator[Tensor]:
    """Those of all tensors in all steps."""
    rng = np.random.default_rng(0)

    def draw() -> list[Tensor]:
        return [tf.constant(rng.standard_normal((1, *shape)), tf.float32) for shape in _SHAPES]

    params = draw()
    state = rule.init_state(theta, params)
    for i, step in enumerate(_STEPS):
        loss, heard = 1.0 - 0.05 * i + 0.1 * rng.standard_normal(), {}
        if hears:
            heard = {"total_steps": _HORIZON, "train_loss": loss, "validation_loss": 2.0 * loss}
        known = {name: tf.constant([x], tf.float32) for name, x in heard.items()}
        signals, grads = Signals.silent(tf.constant([step]), **known), draw()
        updates, after = rule.update(theta, state, grads, params, signals)
        if i == _UNUSABLE:
            # What it would do counts, but it does not go on from there.
            broken = [grads[0] * np.nan, *grads[1:]]
            yield from rule.update(theta, state, broken, params, signals)[0]
        state = after
        params = [param + update for param, update in zip(params, updates, strict=True)]
        yield from updates
