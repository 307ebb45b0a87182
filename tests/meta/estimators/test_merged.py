import numpy as np
import pytest
import tensorflow as tf
from exact import RULE, sample, segment_gradients, smoothed_gradient
from problems import Quadratic

from meta import estimators, random
from meta.estimators import base


def make(**kwargs):
    return estimators.Merged(RULE, Quadratic(), **kwargs)


def combine(gradients, scores, memory=None):
    """Of one entry, from the pathwise gradients and ES estimates of the pairs."""
    estimator = make(num_particles=2 * len(scores), stddev=1.0)
    memory = memory or estimator.init_memory({"a": tf.constant(0.0)}, random.seed(0))
    gradients = {"a": tf.constant([*gradients, *gradients])}
    # With a perturbation of one, a difference of 2 s between the losses makes an estimate s.
    losses = tf.constant([*scores, *(-x for x in scores)])
    samples = base.Samples({"a": tf.ones(len(scores))}, None, losses, gradients)
    gradient, memory, metrics = estimator.combine(samples, memory)
    return float(gradient["a"]), memory, metrics


def test_the_weights_are_inverse_variances_over_the_estimates_so_far():
    gradient, memory, metrics = combine([1.0, 3.0], [20.0, 10.0])
    # Variances 2 and 50, and a negative covariance.
    np.testing.assert_allclose(metrics["es_weight"], 2 / 52)
    np.testing.assert_allclose(gradient, (2 * 50 + 15 * 2) / 52, rtol=1e-6)
    gradient, memory, metrics = combine([1.0, 5.0], [0.0, 0.0], memory)
    # Now 8 and 0, in all 10 and 50.
    np.testing.assert_allclose(metrics["es_weight"], 10 / 60)
    np.testing.assert_allclose(gradient, 3 * 50 / 60, rtol=1e-6)


def test_noise_that_both_share_does_not_count():
    # Differences (2, 2) and (4, 0): variances 2 and 4, covariance 2.
    gradient, _, metrics = combine([3.0, 1.0, 3.0, 1.0], [4.0, 0.0, 1.0, 1.0])
    assert float(metrics["es_weight"]) == 0.0
    assert gradient == 2.0
    # Differences (4, 2) and (2, 2): 5 and 2, covariance 3, more than the second.
    gradient, _, metrics = combine([4.0, 0.0, 3.0, 1.0], [3.0, 1.0, 4.0, 2.0])
    assert float(metrics["es_weight"]) == 1.0
    assert gradient == 2.5


def test_without_any_variance_the_pathwise_gradient_stands():
    assert combine([1.0, 1.0], [3.0, 3.0])[0] == 1.0


def test_neighbours_are_compared():
    # The first two pairs are of another age than the last two.
    _, _, metrics = combine([1.0, 3.0, 101.0, 103.0], [2.0, 0.0, 52.0, 50.0])
    np.testing.assert_allclose(metrics["es_weight"], 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_gradient_that_is_not_finite_counts_as_infinite_variance(value):
    _, memory, _ = combine([1.0, 3.0], [8.0, 4.0])
    gradient, memory, metrics = combine([1.0, value], [8.0, 4.0], memory)
    assert gradient == 6.0
    assert float(metrics["excluded"]) == 0.5
    gradient, memory, metrics = combine([1.0, 3.0], [8.0, 4.0], memory)
    assert gradient == 6.0
    assert float(metrics["excluded"]) == 0.0
    np.testing.assert_allclose(metrics["es_weight"], 1.0)
    # And is forgotten after the next block of a hundred.
    gradients = []
    for _ in range(200):
        gradient, memory, _ = combine([1.0, 3.0], [8.0, 4.0], memory)
        gradients.append(gradient)
    assert gradients[196] == 6.0
    np.testing.assert_allclose(gradients[199], (2 / 2 + 6 / 8) / (1 / 2 + 1 / 8), rtol=1e-5)


@pytest.mark.parametrize("horizon", [10, 20])
def test_unbiased_with_few_pairs_and_better_than_both(horizon):
    """Few pairs: weights that knew the samples they weigh would show as a bias."""
    exact = segment_gradients(10, horizon)[1] if horizon > 10 else smoothed_gradient(10)
    errors = {}
    for name in ("merged", "pathwise", "es"):
        arguments = {"num_particles": 8, "stddev": 0.2, "unroll_length": 10, "horizon": horizon}
        estimator = estimators.get(name, RULE, Quadratic(), **arguments)
        samples = sample(estimator, RULE.init_theta(), 2000, skip=100)
        if horizon > 10:
            samples = samples.reshape(-1, 2, 2).mean(axis=1)
        errors[name] = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        if name == "merged":
            assert (3 * errors[name] < 0.05 * np.abs(exact)).all()
            assert (np.abs(samples.mean(axis=0) - exact) < 3 * errors[name]).all()
    lower = np.minimum(errors["pathwise"], errors["es"])
    assert (errors["merged"] < 1.05 * lower).all()


def test_too_few_particles_are_named():
    with pytest.raises(ValueError, match="`num_particles`.*at least 4.*2"):
        make(num_particles=2)
