import dataclasses
from typing import ClassVar

import numpy as np
import planted
import pytest
import tensorflow as tf

from lopt_keras import rules
from meta import random, tasks
from meta.analysis import scaling
from meta.tasks import base
from meta.tasks.sampling.augmentation import Augmented

SEED = random.seed(3)
STEPS = 8
SGD, ADAM = rules.SGD(1e-4, 0.0), rules.Adam(1e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class Noise(base.Task):
    """A matrix whose gradient is the mean of `batch_size` normal numbers, and nothing else."""

    name: ClassVar = "noise"
    loss_floor: ClassVar = None

    batch_size: int = 1

    def init(self, seed, num, setting):
        return [random.normal((num, 8, 8), seed)]

    def batch(self, split, seed, num, setting):
        return tf.reduce_mean(random.normal((num, self.batch_size, 8, 8), seed), axis=1)

    def loss(self, params, data, setting):
        return tf.reduce_sum(params[0] * data, axis=(1, 2))


def sweep(rule, values, make_task):
    return scaling.sweep(planted.subject(rule), values, make_task, STEPS, SEED)


def scaled(value):
    mlp = tasks.get("two_moons", hidden_units=(4,), batch_size=8)
    return Augmented(mlp, loss_scale=(value, value))


def test_adam_is_invariant_to_the_scale_of_the_loss_and_sgd_proportional():
    found = sweep(ADAM, (0.1, 10.0), scaled)
    np.testing.assert_allclose([found.exponent, found.rate_exponent], [0.0, -1.0], atol=1e-3)
    found = sweep(SGD, (0.1, 10.0), scaled)
    np.testing.assert_allclose([found.exponent, found.rate_exponent], [1.0, 0.0], atol=1e-2)
    np.testing.assert_allclose(found.rates, 1e-4, rtol=1e-3)


def test_steps_follow_noise_where_nothing_normalises_them():
    """A mean of B numbers is smaller by the root of B; Adam divides by its size."""
    found = sweep(SGD, (1, 16), Noise)
    np.testing.assert_allclose(found.exponent, -0.5, atol=0.05)
    np.testing.assert_allclose(found.rate_exponent, 0.0, atol=1e-3)
    found = sweep(ADAM, (1, 16), Noise)
    np.testing.assert_allclose(found.exponent, 0.0, atol=0.05)
    np.testing.assert_allclose(found.rate_exponent, 0.5, atol=0.05)


def test_what_cannot_be_measured_names_the_value():
    def quadratic(dimension):
        return tasks.get("quadratic", dimension=dimension)

    with pytest.raises(ValueError, match=r"SGD diverges at the value 4"):
        sweep(rules.SGD(1e6), (4,), quadratic)
    with pytest.raises(ValueError, match=r"value 4 has no matrix"):
        sweep(SGD, (4,), quadratic)
