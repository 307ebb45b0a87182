import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from problems import Quadratic, small_mlp

from lopt_keras import rules
from meta import estimators, random
from meta.estimators import base
from meta.inner import unroll

SEED = random.seed(5)
LENGTH = 8
SGD = rules.SGD(learning_rate=0.1, momentum=0.5)
LEARNED = {"hidden_size": 3, "hidden_layers": 1, "step_mult": 0.05, "exp_mult": 0.1}


def estimate(rule, task, length=None, **kwargs):
    """With perturbations too small to matter: the gradient at theta itself."""
    arguments = {"num_particles": 2, "stddev": 1e-7, "unroll_length": LENGTH, **kwargs}
    estimator = estimators.Pathwise(rule, task, **arguments)
    theta = {name: tf.constant(value) for name, value in rule.init_theta().items()}
    state = estimator.init_state(theta, SEED)
    step = tf.function(estimator.estimate, jit_compile=True)
    return step(theta, state, SEED, length)


def slopes(rule, task, directions, width, split="train", length=LENGTH):
    """Of the clipped mean outer loss along each direction, by central differences.

    On the problem and the batches of `estimate`.
    """
    theta = rule.init_theta()
    particles = {
        name: tf.constant(np.concatenate([value + width * d, value - width * d]))
        for (name, value), d in zip(theta.items(), directions.values(), strict=True)
    }
    estimator = estimators.ES(rule, task, num_particles=2, unroll_length=length)

    @tf.function(jit_compile=True)
    def losses():
        inner = unroll.begin(rule, task, particles, random.fold_in(SEED, 1), 1)
        args = (rule, task, particles, inner, random.fold_in(SEED, 2), length, 1, split)
        return estimator.outer_losses(unroll.run(*args)[0], length)[0]

    plus, minus = np.split(losses().numpy().astype("float64"), 2)
    return (plus - minus) / (2 * width)


def unit_directions(rule, num):
    rng = np.random.RandomState(0)
    shapes = rule.theta_shapes()
    directions = {name: rng.standard_normal((num, *shape)) for name, shape in shapes.items()}
    squares = [np.square(d).reshape(num, -1).sum(axis=1) for d in directions.values()]
    norm = np.sqrt(sum(squares))
    return {
        name: (d / norm.reshape(-1, *[1] * (d.ndim - 1))).astype("float32")
        for name, d in directions.items()
    }


def assert_gradient(gradient, rule, task, width=3e-3, num=20, **kwargs):
    directions = unit_directions(rule, num)
    expected = slopes(rule, task, directions, width, **kwargs)
    products = [
        np.tensordot(directions[name].reshape(num, -1), g.numpy().ravel(), axes=1)
        for name, g in gradient.items()
    ]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(sum(products), expected, rtol=0.01, atol=2e-4)


def test_a_learned_rule_against_finite_differences():
    rule, task = rules.MLP(**LEARNED, momentum_decays=(0.9,)), small_mlp(activation="tanh")
    result = estimate(rule, task, outer_split="validation")
    assert_gradient(result.gradient, rule, task, split="validation")


@dataclasses.dataclass(frozen=True)
class LearnedStart(rules.SGD):
    """Its momentum starts at a meta-parameter."""

    def _hyperparameters(self):
        return {**super()._hyperparameters(), "start": 0.3}

    def init_tensor_state(self, theta, param, name):
        return {"m": tf.zeros_like(param) + theta["start"][:, None]}


def test_a_state_that_starts_from_theta():
    rule = LearnedStart(learning_rate=0.1, momentum=0.5)
    for segment_length in (3, LENGTH):
        result = estimate(rule, Quadratic(), segment_length=segment_length)
        assert abs(float(result.gradient["start"])) > 0.1
        assert_gradient(result.gradient, rule, Quadratic())


@dataclasses.dataclass(frozen=True, eq=False)
class SometimesInfinite(Quadratic):
    """On about a third of the batches of one split, the loss is infinite."""

    split: str = "train"

    def batch(self, split, seed, num, setting):
        bad = random.uniform((num,), seed) < 0.3
        return tf.where(bad & (split == self.split), np.inf, 1.0)

    def loss(self, params, data, setting):
        return super().loss(params, data, setting) * data


def test_segments_change_nothing_but_the_cost():
    # The batches matter in this task: segments must draw the same.
    task, theta = SometimesInfinite("train"), SGD.init_theta()
    theta = {name: tf.constant(value) for name, value in theta.items()}

    def estimates(**kwargs):
        arguments = {"num_particles": 8, "unroll_length": LENGTH, **kwargs}
        estimator = estimators.Pathwise(SGD, task, **arguments)
        state = estimator.init_state(theta, SEED)
        step = tf.function(estimator.estimate, jit_compile=True)
        lengths = map(tf.constant, (LENGTH, 5, 3, 1))
        return tf.nest.flatten([step(theta, state, SEED, length) for length in lengths])

    for horizon in (LENGTH, 2 * LENGTH):
        whole = estimates(horizon=horizon)
        cut = estimates(horizon=horizon, segment_length=3)
        for a, b in zip(cut, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("split", estimators.OUTER_SPLITS)
def test_steps_that_cannot_be_taken_or_measured_pass_no_nan(split):
    task = SometimesInfinite(split)
    result = estimate(SGD, task, outer_split=split)
    assert float(result.metrics["diverged"]) == 1.0
    assert float(result.metrics["excluded"]) == 0.0
    assert 1.0 < float(result.metrics["meta_loss"]) < 9.0
    assert_gradient(result.gradient, SGD, task, split=split)


@pytest.mark.parametrize("learning_rate", [1e12, 3e38])
def test_a_loss_that_is_clipped_has_no_gradient(learning_rate):
    result = estimate(rules.SGD(learning_rate=learning_rate), Quadratic())
    # The first loss does not depend on theta, and all others are clipped.
    np.testing.assert_allclose(result.metrics["meta_loss"], (1 + 7 * 10) / LENGTH, rtol=1e-6)
    assert float(result.metrics["excluded"]) == 0.0
    assert [float(g) for g in result.gradient.values()] == [0.0, 0.0]


def test_particles_without_a_finite_gradient_are_left_out_and_counted():
    estimator = estimators.Pathwise(SGD, Quadratic(), num_particles=4)
    gradients = {"a": tf.constant([1.0, np.nan, 3.0, 5.0]), "b": tf.constant([[2.0, 0.0]] * 4)}
    samples = base.Samples({}, None, None, gradients)
    gradient, _, metrics = estimator.combine(samples, ())
    assert float(gradient["a"]) == 3.0
    np.testing.assert_array_equal(gradient["b"], [2.0, 0.0])
    assert float(metrics["excluded"]) == 0.25
    broken = {name: g * np.inf for name, g in gradients.items()}
    gradient, _, metrics = estimator.combine(samples._replace(gradients=broken), ())
    assert float(gradient["a"]) == 0.0
    assert float(metrics["excluded"]) == 1.0


@pytest.mark.parametrize("value", [0, LENGTH + 1])
def test_wrong_segment_lengths_are_named(value):
    with pytest.raises(ValueError, match=f"`segment_length`.*{value}"):
        estimate(SGD, Quadratic(), segment_length=value)
