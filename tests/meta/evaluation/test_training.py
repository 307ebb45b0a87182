import keras
import numpy as np
import pytest
from problems import small_mlp

from lopt_keras import LearnedOptimizer, rules
from meta import random
from meta.evaluation.keras_training import KerasTraining
from meta.evaluation.side_by_side import SideBySide
from meta.inner.training import InnerTraining
from meta.tasks.sampling.augmentation import Augmented

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("evaluation_training")

SEED = random.seed(3)
STEPS = 12
RULES = (
    rules.Muon(learning_rate=0.01),
    rules.Adam(learning_rate=0.01),
    rules.Nadam(learning_rate=0.01),
    rules.CosineAdamW(learning_rate=0.01),
)


@pytest.fixture(scope="module")
def task():
    return Augmented(small_mlp(init_scale=[0.5, 1.0]), loss_scale=(0.1, 10.0))


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def alone(task, rule, theta=None):
    training = InnerTraining(task, rule, 1, 2, STEPS, signals_known=True, test_batches=20)
    return training([theta or rule.init_theta()], SEED, 1)[0]


@pytest.fixture(scope="module")
def adam(task):
    return alone(task, RULES[1])


def test_rules_side_by_side_do_what_each_does_alone(task, adam):
    rule = SideBySide(RULES)
    training = InnerTraining(task, rule, len(RULES), 2, STEPS, signals_known=True, test_batches=20)
    together = training([rule.init_theta()] * len(RULES), SEED, 1)
    assert_same(together[1], adam)
    for i in (0, 2, 3):  # Fewer entries of state, shared state, the horizon.
        assert_same(together[i], alone(task, RULES[i]))
    # All saw the same problems.
    for curves in together:
        np.testing.assert_allclose(curves.train[0], adam.train[0], rtol=1e-6)
        assert curves.train.shape == curves.held_out.shape == (STEPS, 2)
        assert curves.test.shape == (2,)
    assert len({float(curves.train[-1, 0]) for curves in together}) == len(RULES)


def test_a_keras_optimizer_has_the_same_curves_as_its_rule(task, adam):
    def make():
        return keras.optimizers.Adam(0.5)

    training = KerasTraining(task, make, 2, STEPS, signals_known=True, test_batches=20)
    assert_same(training(0.01, SEED, 1), adam)
    assert not np.allclose(training(0.1, SEED, 1).train[-1], adam.train[-1])
    # The state of the optimizer begins anew.
    assert_same(training(0.01, SEED, 1), adam)


def test_a_keras_optimizer_hears_of_the_horizon(task):
    rule = rules.CosineAdamW(learning_rate=0.01)

    def make():
        return LearnedOptimizer(rule.init_theta(), rule)

    training = KerasTraining(task, make, 2, STEPS, signals_known=True, test_batches=20)
    assert_same(training(None, SEED, 1), alone(task, rule))


def test_losses_are_scores(adam):
    """Not those that the augmentation multiplies by up to ten, or divides."""
    assert (adam.train[0] > 0.3).all()
    assert (adam.train[0] < 2.0).all()
    np.testing.assert_allclose(adam.train[0], adam.held_out[0], rtol=0.5)
