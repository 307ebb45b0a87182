"""What a rule does, in a few bytes."""

import hashlib

import numpy as np
import tensorflow as tf

from lopt_keras.rules.base import UpdateRule
from lopt_keras.signals import Signals
from lopt_keras.types import Theta

_SHAPES = ((4, 6), (6,), ())
_STEPS = (*range(12), 150, 151, 1500, 1501)
_HORIZON = 2000.0


def fingerprint(rule: UpdateRule, theta: Theta) -> str:
    """Of the steps that a rule takes in a few situations: another one if its code does others.

    On one machine; on another, sums may be rounded in another way.

    Args:
        rule, theta: `UpdateRule` and its meta-parameters, dict of arrays.

    Returns:
        16 hexadecimal digits.
    """
    rng = np.random.default_rng(0)

    def draw() -> list[tf.Tensor]:
        return [tf.constant(rng.standard_normal((1, *shape)), tf.float32) for shape in _SHAPES]

    theta = {name: tf.constant(x, tf.float32)[None] for name, x in theta.items()}
    params, content = draw(), hashlib.sha256()
    state = rule.init_state(theta, params)
    for i, step in enumerate(_STEPS):
        loss = 1.0 - 0.05 * i + 0.1 * rng.standard_normal()
        heard = {"total_steps": [_HORIZON], "train_loss": [loss], "validation_loss": [2.0 * loss]}
        signals = Signals.silent(
            tf.constant([step]), **{k: tf.constant(x, tf.float32) for k, x in heard.items()}
        )
        updates, state = rule.update(theta, state, draw(), params, signals)
        params = [param + update for param, update in zip(params, updates, strict=True)]
        for update in updates:
            content.update(np.asarray(update).tobytes())
    return content.hexdigest()[:16]
