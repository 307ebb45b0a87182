import numpy as np
import pytest

from meta.evaluation import metrics
from meta.inner.training import Curves

STEPS = 1000


def exponential(rate, floor=0.0):
    """From 1 to the floor, two seeds."""
    steps = np.arange(STEPS)[:, None]
    return np.repeat(floor + (1 - floor) * np.exp(-rate * steps), 2, axis=1)


def curves(losses, validation=None, test=None):
    validation = losses if validation is None else validation
    return Curves(losses, validation, losses[-1] if test is None else test)


def compute(own, adam, seconds=2.0, adam_seconds=1.0):
    start = metrics.start_of(adam)
    both = metrics.bound(own, start), metrics.bound(adam, start)
    return metrics.compute(*both, start, seconds, adam_seconds)


def test_the_ratio_is_how_many_times_faster():
    adam = curves(exponential(0.002))
    own = compute(curves(exponential(0.008)), adam)
    # The smoothing makes both late, by half of its 50 steps.
    np.testing.assert_allclose(own.train_ratio, 1000 / 268, rtol=0.02)
    np.testing.assert_allclose(own.validation_ratio, own.train_ratio)
    np.testing.assert_allclose(own.seconds_ratio, own.train_ratio / 2)
    np.testing.assert_allclose(own.steps_to_train, 1000 / own.train_ratio)
    np.testing.assert_allclose(own.seconds_to_train, 2 * own.steps_to_train)
    assert (own.validation_excess < 0).all()
    assert not own.diverged.any()


def test_adam_against_itself():
    adam = curves(exponential(0.002))
    own = compute(adam, adam, seconds=1.0)
    for name in ("train_ratio", "validation_ratio", "seconds_ratio"):
        np.testing.assert_array_equal(getattr(own, name), 1.0)
    np.testing.assert_array_equal(own.validation_excess, 0.0)
    np.testing.assert_array_equal(own.test_excess, 0.0)


def test_who_misses_the_target_counts_as_the_time_that_adam_needs_to_get_as_far():
    # exp(-0.001 * 1000) is what Adam reaches after a quarter of its steps.
    own = compute(curves(exponential(0.001)), curves(exponential(0.004)))
    assert np.isinf(own.steps_to_train).all()
    np.testing.assert_allclose(own.train_ratio, 0.25, rtol=0.1)
    # Who learns nothing needs no more than Adam's first step.
    still = compute(curves(np.ones((STEPS, 2))), curves(exponential(0.004)))
    np.testing.assert_allclose(still.train_ratio, 1 / STEPS)
    np.testing.assert_allclose(still.validation_excess, 1.0, rtol=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 3.0])
def test_divergence_is_counted_and_bounded(value):
    losses = exponential(0.01)
    losses[STEPS // 2 :, 1] = value
    adam = curves(exponential(0.004))
    own = compute(curves(losses), adam)
    assert own.diverged.tolist() == [False, True]
    assert own.train_ratio[0] > 1
    np.testing.assert_allclose(own.train_ratio[1], 1 / STEPS)
    for quantity in (own.final_train, own.final_validation, own.final_test, own.mean_train):
        assert (quantity <= 10.0 + 1e-9).all()
    summary = metrics.summarise([own], [np.ones((1, 2))])
    assert (summary["diverged"], summary["pairs"]) == (1, 2)


def test_losses_may_be_negative():
    adam = curves(exponential(0.004) - 5.0)
    own = compute(curves(exponential(0.016) - 5.0), adam)
    assert (own.train_ratio > 3).all()
    assert not own.diverged.any()
    assert compute(curves(np.full((STEPS, 2), 1.0)), adam).diverged.all()


def test_a_validation_loss_is_compared_at_its_lowest_and_at_its_end():
    adam = curves(exponential(0.004))
    overfitted = exponential(0.016)
    overfitted[-100:] = 0.9
    own = compute(curves(exponential(0.016), overfitted), adam)
    assert (own.validation_ratio > 3).all()
    np.testing.assert_allclose(own.final_validation, 0.9)
    np.testing.assert_allclose(own.validation_excess, 0.9, rtol=0.05)
    assert (own.lowest_validation < 0.01).all()


def test_the_end_counts_as_the_steps_that_adam_needs_to_it():
    own, adam = exponential(0.02), exponential(0.01)
    start = metrics.start_of(curves(adam))
    longer = np.exp(-0.01 * np.arange(10 * len(adam)))[:, None].repeat(adam.shape[1], axis=1)
    bounded = [metrics.bound(curves(x), start) for x in (own, adam)]
    slow, fast = (metrics.bound_longer(x, start, len(adam)) for x in (longer**0.5, longer))
    of_both = metrics.compute(*bounded, start, 1.0, 1.0, [slow, fast])
    # The smoothing makes both late.
    np.testing.assert_allclose(of_both.end_ratio, 2.0, rtol=0.02)
    never = metrics.compute(*bounded, start, 1.0, 1.0, [fast[: len(adam)]])
    np.testing.assert_array_equal(never.end_ratio, 1.0)
    assert np.isnan(metrics.compute(*bounded, start, 1.0, 1.0).end_ratio).all()


def test_summary_over_tasks():
    adam = curves(exponential(0.002))
    rates = (0.001, 0.004, 0.008, 0.012)
    results = [compute(curves(exponential(rate)), adam) for rate in rates]
    others = [np.array([[1.0, 1.0], [2.5, 2.5]])] * 4
    summary = metrics.summarise(results, others)
    assert summary["tasks"] == 4
    assert summary["fraction_train_won"] == 0.75
    assert summary["fraction_fastest"] == 0.5
    assert summary["fraction_validation_no_worse"] == 0.75
    medians = sorted(float(np.median(result.train_ratio)) for result in results)
    lowest, _, _, _, highest = summary["quartiles"]["train_ratio"]
    np.testing.assert_allclose([lowest, highest], [medians[0], medians[-1]])


def test_performance_profile():
    steps = np.array([[10.0, 20.0], [30.0, 10.0], [5.0, np.inf], [np.inf, np.inf]])
    fractions = metrics.profile(steps, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(fractions, [[0.5, 0.25], [0.5, 0.5], [0.75, 0.5]])


def test_smoothing_looks_back_only():
    losses = np.arange(200.0)[:, None]
    smooth = metrics.smooth(losses, 4)
    np.testing.assert_allclose(smooth[:5, 0], [0, 0.5, 1, 1.5, 2.5])


def test_a_final_loss_is_that_of_the_last_twentieth():
    losses = np.arange(40.0)[:, None] * [1.0, 2.0]
    np.testing.assert_allclose(metrics.final(losses), [38.5, 77.0])
    losses[-1, 0] = np.nan
    assert metrics.final(losses)[0] == np.inf
