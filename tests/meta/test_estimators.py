import numpy as np
import pytest
import tensorflow as tf
from problems import Noise, Quadratic

from lopt_keras import rules
from meta import estimators, random

RULE = rules.SGD(learning_rate=0.1, momentum=0.5)
STDDEV = 0.2
NAMES = ("log_learning_rate", "log_one_minus_momentum")


def outer_loss(log_learning_rate, log_one_minus_momentum, length):
    """Mean loss of SGD with momentum on `Quadratic`, by its recursion in float64."""
    learning_rate, momentum = np.exp(log_learning_rate), 1 - np.exp(log_one_minus_momentum)
    x, m, total = 1.0, 0.0, 0.0
    for _ in range(length):
        total = total + 0.5 * Quadratic.curvature * x**2
        m = momentum * m - learning_rate * Quadratic.curvature * x
        x = x + m
    return total / length


def smoothed_gradient(length, stddev=STDDEV):
    """Of `E_e[outer_loss(theta + e)]`, by Gauss-Hermite quadrature: `E_e[loss e] / stddev^2`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    e1, e2 = np.meshgrid(stddev * nodes, stddev * nodes, indexing="ij")
    theta = RULE.init_theta()
    losses = outer_loss(theta[NAMES[0]] + e1, theta[NAMES[1]] + e2, length)
    density = weights[:, None] * weights[None, :] / stddev**2
    return np.array([(density * losses * e).sum() for e in (e1, e2)])


def sample(estimator, theta, num, skip=0):
    """Gradients `[num, 2]` of successive estimates."""
    theta = {name: tf.constant(value) for name, value in theta.items()}
    step = tf.function(estimator.estimate, jit_compile=True)
    worker = estimator.init_worker(theta, random.seed(0))
    gradients = []
    for i in range(num + skip):
        estimate = step(theta, worker, random.fold_in(random.seed(1), i))
        worker = estimate.worker
        gradients.append([estimate.gradient[name].numpy() for name in NAMES])
    return np.array(gradients[skip:])


def assert_unbiased(samples, exact):
    """Within 3 standard errors, small enough to notice a factor of 1.05."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert (3 * error < 0.05 * np.abs(exact)).all(), (error, exact)
    assert (np.abs(samples.mean(axis=0) - exact) < 3 * error).all(), (samples.mean(0), exact, error)


def test_the_quadrature_itself_is_exact_in_the_limit():
    theta = [float(RULE.init_theta()[name]) for name in NAMES]
    numeric = [
        (outer_loss(*(np.array(theta) + d), 10) - outer_loss(*(np.array(theta) - d), 10)) / 2e-5
        for d in 1e-5 * np.eye(2)
    ]
    np.testing.assert_allclose(smoothed_gradient(10, stddev=1e-3), numeric, rtol=1e-4)
    # At the width used below, smoothing itself is far from negligible.
    assert abs(smoothed_gradient(10)[1] / numeric[1] - 1) > 0.05


def test_es_is_unbiased_for_the_smoothed_loss():
    estimator = estimators.ES(
        RULE, Quadratic(), num_particles=20_000, stddev=STDDEV, unroll_length=10
    )
    assert_unbiased(sample(estimator, RULE.init_theta(), 40), smoothed_gradient(10))


def pes(horizon, **kwargs):
    return estimators.PES(RULE, Quadratic(), horizon, **{"unroll_length": 5, **kwargs})


def test_pes_over_one_segment_is_es():
    estimator = pes(5, num_particles=20_000, stddev=STDDEV)
    assert_unbiased(sample(estimator, RULE.init_theta(), 40), smoothed_gradient(5))


def test_pes_is_unbiased_for_the_whole_unroll_where_truncated_es_is_not():
    # Segments have perturbations of their own; a narrow width makes that immaterial.
    stddev, horizon = 0.02, 20
    exact = smoothed_gradient(horizon, stddev)
    estimator = pes(horizon, num_particles=20_000, stddev=stddev)
    # Means over one horizon each: successive estimates share perturbations.
    samples = sample(estimator, RULE.init_theta(), 100 * 4, skip=4)
    assert_unbiased(samples.reshape(100, 4, 2).mean(axis=1), exact)
    truncated = estimators.ES(
        RULE, Quadratic(), num_particles=20_000, stddev=stddev, unroll_length=5
    )
    short_sighted = sample(truncated, RULE.init_theta(), 20).mean(axis=0)
    assert (np.abs(short_sighted / exact - 1) > 0.2).any()


def test_pairs_see_the_same_problems():
    rule = rules.SGD()
    theta = {name: tf.constant(value) for name, value in rule.init_theta().items()}
    for name in estimators.NAMES:
        for split in estimators.OUTER_SPLITS:
            estimator = estimators.get(
                name, rule, Noise(), 4, num_particles=8, unroll_length=2, outer_split=split
            )
            worker = estimator.init_worker(theta, random.seed(0))
            estimate = estimator.estimate(theta, worker, random.seed(1))
            # The losses differ between pairs, but within a pair theta changes nothing.
            for gradient in estimate.gradient.values():
                assert float(gradient) == 0.0
            assert abs(float(estimate.metrics["meta_loss"])) > 0.0


def test_the_outer_split_is_what_is_measured():
    rule = rules.SGD(learning_rate=1e-9)
    theta = {name: tf.constant(value) for name, value in rule.init_theta().items()}
    losses = []
    for split in estimators.OUTER_SPLITS:
        estimator = estimators.ES(
            rule, Noise(), num_particles=2000, unroll_length=10, outer_split=split
        )
        losses.append(float(estimator.estimate(theta, (), random.seed(1)).metrics["meta_loss"]))
    np.testing.assert_allclose(losses[1] - losses[0], 1.0, atol=0.1)


@pytest.mark.parametrize("name", estimators.NAMES)
def test_divergence_costs_a_bounded_amount_and_is_counted(name):
    rule = rules.SGD(learning_rate=1e12)
    theta = {name: tf.constant(value) for name, value in rule.init_theta().items()}
    estimator = estimators.get(name, rule, Quadratic(), 20, num_particles=8, unroll_length=10)
    worker = estimator.init_worker(theta, random.seed(0))
    for i in range(3):
        estimate = estimator.estimate(theta, worker, random.fold_in(random.seed(1), i))
        worker = estimate.worker
        assert float(estimate.metrics["diverged"]) == 1.0
        # The first loss of a problem is 1, all others are clipped.
        np.testing.assert_allclose(estimate.metrics["meta_loss"], (1 + 9 * 10) / 10, rtol=1e-6)
        assert all(np.isfinite(g.numpy()).all() for g in estimate.gradient.values())
    if name == "pes":
        np.testing.assert_array_equal(worker.inner.params[0], np.ones((8, 1)))
        assert not worker.age.numpy().any()
        assert not any(x.numpy().any() for x in worker.xi.values())


def test_pes_staggers_its_pairs_and_renews_them_at_the_horizon():
    theta = {name: tf.constant(value) for name, value in RULE.init_theta().items()}
    estimator = pes(20, num_particles=8)
    worker = estimator.init_worker(theta, random.seed(0))
    np.testing.assert_array_equal(worker.age, [0, 5, 10, 15])
    worker = estimator.estimate(theta, worker, random.seed(1)).worker
    np.testing.assert_array_equal(worker.age, [5, 10, 15, 0])
    np.testing.assert_array_equal(worker.inner.step, [5, 5, 5, 0] * 2)
    assert all((x.numpy() != 0).tolist() == [True] * 3 + [False] for x in worker.xi.values())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_particles": 3}, "`num_particles`.*3"),
        ({"num_particles": 0}, "`num_particles`.*0"),
        ({"stddev": 0.0}, "`stddev`.*0.0"),
        ({"unroll_length": 0}, "`unroll_length`.*0"),
        ({"outer_split": "test"}, "`outer_split`.*'test'"),
        ({"unroll_length": 7}, "`horizon`.*unroll_length=7.*20"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        pes(20, **arguments)
    with pytest.raises(ValueError, match="`estimator`.*'nope'"):
        estimators.get("nope", RULE, Quadratic(), 20)
