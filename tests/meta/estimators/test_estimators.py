import numpy as np
import pytest
import tensorflow as tf
from exact import (
    NAMES,
    RULE,
    STDDEV,
    assert_unbiased,
    outer_loss,
    sample,
    segment_gradients,
    smoothed_gradient,
)
from problems import Noise, Quadratic

from lopt_keras import rules
from meta import estimators, random


def make(name, **kwargs):
    arguments = {"num_particles": 20_000, "stddev": STDDEV, "unroll_length": 5, **kwargs}
    return estimators.get(name, RULE, Quadratic(), **arguments)


def init_theta(rule):
    return {name: tf.constant(value) for name, value in rule.init_theta().items()}


def test_the_exact_gradients_agree():
    theta = np.array([float(RULE.init_theta()[name]) for name in NAMES])
    numeric = [
        (outer_loss(*(theta + d), 10) - outer_loss(*(theta - d), 10)) / 2e-5
        for d in 1e-5 * np.eye(2)
    ]
    np.testing.assert_allclose(smoothed_gradient(10, stddev=1e-3), numeric, rtol=1e-4)
    # At the width used below, smoothing itself is far from negligible.
    assert abs(smoothed_gradient(10)[1] / numeric[1] - 1) > 0.05
    for gradient in segment_gradients(10, 10):
        np.testing.assert_allclose(gradient, smoothed_gradient(10), rtol=1e-9)
    # Segments have perturbations of their own; a narrow width makes that immaterial.
    whole, truncated = segment_gradients(5, 20, stddev=0.01)
    np.testing.assert_allclose(whole, smoothed_gradient(20, stddev=0.01), rtol=1e-3)
    assert (np.abs(truncated / whole - 1) > 0.05).all()


@pytest.mark.parametrize("name", estimators.NAMES)
def test_unbiased_for_the_smoothed_loss_of_a_whole_unroll(name):
    estimator = make(name, unroll_length=10)
    assert_unbiased(sample(estimator, RULE.init_theta(), 40), smoothed_gradient(10))


@pytest.mark.parametrize("name", estimators.NAMES)
def test_continued_unrolls_give_the_whole_gradient_or_the_truncated_one(name):
    estimator = make(name, horizon=20)
    # Means over one horizon each: successive estimates share problems.
    samples = sample(estimator, RULE.init_theta(), 60 * 4, skip=4)
    samples = samples.reshape(60, 4, 2).mean(axis=1)
    whole, truncated = segment_gradients(5, 20)
    # With one perturbation for all segments, as if there were none.
    expected = {"pes": whole, "nres": smoothed_gradient(20)}.get(name, truncated)
    other = truncated if name in ("pes", "nres") else whole
    assert_unbiased(samples, expected)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(axis=0) - other) > 10 * error).any()


def test_pairs_see_the_same_problems():
    rule = rules.SGD()
    theta = init_theta(rule)
    for name in estimators.NAMES:
        for split in estimators.OUTER_SPLITS:
            arguments = {"horizon": 4, "num_particles": 8, "unroll_length": 2}
            estimator = estimators.get(name, rule, Noise(), outer_split=split, **arguments)
            state = estimator.init_state(theta, random.seed(0))
            estimate = estimator.estimate(theta, state, random.seed(1))
            # The losses differ between pairs, but within a pair theta changes nothing.
            for gradient in estimate.gradient.values():
                assert float(gradient) == 0.0
            assert abs(float(estimate.metrics["meta_loss"])) > 0.0


def test_the_outer_split_is_what_is_measured():
    rule = rules.SGD(learning_rate=1e-9)
    theta = init_theta(rule)
    losses = []
    for split in estimators.OUTER_SPLITS:
        estimator = estimators.ES(
            rule, Noise(), num_particles=2000, unroll_length=10, outer_split=split
        )
        state = estimator.init_state(theta, random.seed(0))
        estimate = estimator.estimate(theta, state, random.seed(1))
        losses.append(float(estimate.metrics["meta_loss"]))
    np.testing.assert_allclose(losses[1] - losses[0], 1.0, atol=0.1)


@pytest.mark.parametrize("name", estimators.NAMES)
def test_divergence_costs_a_bounded_amount_and_is_counted(name):
    rule = rules.SGD(learning_rate=1e12)
    theta = init_theta(rule)
    arguments = {"horizon": 20, "num_particles": 8, "unroll_length": 10}
    estimator = estimators.get(name, rule, Quadratic(), **arguments)
    state = estimator.init_state(theta, random.seed(0))
    for i in range(3):
        estimate = estimator.estimate(theta, state, random.fold_in(random.seed(1), i))
        state = estimate.state
        assert float(estimate.metrics["diverged"]) == 1.0
        # The first loss of a problem is 1, all others are clipped.
        np.testing.assert_allclose(estimate.metrics["meta_loss"], (1 + 9 * 10) / 10, rtol=1e-6)
        assert all(np.isfinite(g.numpy()).all() for g in estimate.gradient.values())
        assert not state.problems.remaining.numpy().any()


def test_pairs_start_staggered_and_begin_anew_at_the_horizon():
    theta = init_theta(RULE)
    estimator = make("pes", horizon=20, num_particles=8)
    state = estimator.init_state(theta, random.seed(0))
    seen = []
    for i in range(2):
        seen.append(state.problems.remaining.numpy().tolist())
        state = estimator.estimate(theta, state, random.fold_in(random.seed(1), i)).state
    assert seen == [[20, 15, 10, 5], [15, 10, 5, 0]]
    np.testing.assert_array_equal(state.problems.remaining, [10, 5, 0, 15])
    np.testing.assert_array_equal(state.problems.inner.step, [10, 10, 10, 5] * 2)
    # The perturbations that the last pair has seen are those of this one segment.
    e = estimator.perturbations(theta, random.fold_in(random.fold_in(random.seed(1), 1), 0))
    for name, xi in state.memory.items():
        assert (xi.numpy() == e[name].numpy()).tolist() == [False, False, False, True]


def test_a_pair_keeps_its_perturbation_until_it_begins_anew():
    theta = init_theta(RULE)
    estimator = make("nres", horizon=20, num_particles=8)
    state = estimator.init_state(theta, random.seed(0))
    kept = [state.memory]
    for i in range(2):
        state = estimator.estimate(theta, state, random.fold_in(random.seed(1), i)).state
        kept.append(state.memory)
    for name in theta:
        first, second, third = (memory[name].numpy() for memory in kept)
        assert (first != 0).all()
        np.testing.assert_array_equal(first, second)
        assert (second == third).tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", estimators.NAMES)
def test_the_length_of_a_problem_may_change_from_estimate_to_estimate(name):
    theta, seed = init_theta(RULE), random.seed(1)

    def gradient(unroll_length, length):
        estimator = make(name, unroll_length=unroll_length, num_particles=8)
        state = estimator.init_state(theta, random.seed(0))
        return estimator.estimate(theta, state, seed, length).gradient

    expected, shortened = gradient(3, None), gradient(7, tf.constant(3))
    for entry in theta:
        np.testing.assert_allclose(shortened[entry], expected[entry], rtol=1e-5)
    estimator = make(name, horizon=20, num_particles=8)
    state = estimator.init_state(theta, random.seed(0), tf.constant(10))
    np.testing.assert_array_equal(state.problems.remaining, [10, 10, 5, 5])
    for _ in range(2):
        state = estimator.estimate(theta, state, seed, tf.constant(15)).state
    np.testing.assert_array_equal(state.problems.remaining, [0, 0, 10, 10])


@pytest.mark.parametrize("name", estimators.NAMES)
def test_the_outer_loss_may_be_that_of_the_last_steps(name):
    # Half of five steps, rounded up; segments of two do not divide them.
    recomputation = {"segment_length": 2} if name in ("pathwise", "merged") else {}
    estimator = make(name, outer_tail=0.5, **recomputation)
    exact = smoothed_gradient(5, tail=3)
    assert (np.abs(exact / smoothed_gradient(5) - 1) > 0.2).all()
    assert_unbiased(sample(estimator, RULE.init_theta(), 60), exact)


@pytest.mark.parametrize("name", estimators.NAMES)
def test_what_is_not_trained_is_not_perturbed(name):
    estimator = make(name, num_particles=8, trained=["log_learning_rate"])
    theta = init_theta(RULE)
    perturbations = estimator.perturbations(theta, random.seed(0))
    assert (perturbations["log_learning_rate"] != 0).numpy().all()
    assert (perturbations["log_one_minus_momentum"] == 0).numpy().all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_particles": 3}, "`num_particles`.*3"),
        ({"num_particles": 0}, "`num_particles`.*0"),
        ({"stddev": 0.0}, "`stddev`.*0.0"),
        ({"unroll_length": 0}, "`unroll_length`.*0"),
        ({"outer_split": "test"}, "`outer_split`.*'test'"),
        ({"unroll_length": 7, "horizon": 20}, "`horizon`.*unroll_length=7.*20"),
        ({"outer_tail": 0.0}, "`outer_tail`.*0.0"),
        ({"outer_tail": 1.5}, "`outer_tail`.*1.5"),
        ({"outer_tail": 0.5, "horizon": 20}, "`outer_tail`.*0.5.*horizon=20"),
        ({"trained": ["nope"]}, "`trained`.*'nope'"),
        ({"trained": []}, "`trained`"),
        ({"nope": 1}, "nope"),
    ],
)
@pytest.mark.parametrize("name", estimators.NAMES)
def test_wrong_arguments_are_named(name, arguments, text):
    with pytest.raises(ValueError, match=text):
        make(name, **arguments)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="`estimator`.*'nope'"):
        estimators.get("nope", RULE, Quadratic())


def test_a_fraction_of_problems_is_told_its_horizon_and_validation_losses():
    fractions = {"horizon_known": 0.3, "validation_known": 0.6}
    estimator = make("pes", horizon=20, num_particles=2000, **fractions)
    inner = estimator.init_state(init_theta(RULE), random.seed(0)).problems.inner
    told = inner.total_steps.numpy() > 0, inner.validation_known.numpy()
    for heard, fraction in zip(told, fractions.values(), strict=True):
        plus, minus = np.split(heard, 2)
        np.testing.assert_array_equal(plus, minus)
        assert abs(plus.mean() - fraction) < 0.05
    assert (inner.total_steps.numpy()[told[0]] == 20).all()
    assert abs((told[0] & told[1]).mean() - 0.18) < 0.05


@pytest.mark.parametrize("name", ["horizon_known", "validation_known"])
@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(name, fraction):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make("pes", **{name: fraction})


def test_other_perturbations():
    estimator, theta = make("es", num_particles=8), init_theta(RULE)
    other = estimator.with_stddev(tf.constant(3 * STDDEV))
    seed = random.seed(0)
    for name, e in estimator.perturbations(theta, seed).items():
        np.testing.assert_allclose(other.perturbations(theta, seed)[name], 3 * e, rtol=1e-6)
    losses = tf.range(8.0)
    directions = {name: tf.ones((4, *x.shape)) for name, x in theta.items()}
    scores, others = (x.score_samples(directions, losses) for x in (estimator, other))
    np.testing.assert_allclose(others[NAMES[0]], scores[NAMES[0]] / 9, rtol=1e-6)
    assert estimator.stddev == STDDEV
