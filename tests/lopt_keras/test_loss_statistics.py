import numpy as np

from lopt_keras import loss_statistics
from lopt_keras.rules import Signal

DECAYS = (0.5, 0.9)


def observed(losses):
    statistics = loss_statistics.init(1, DECAYS, "train")
    for loss in losses:
        heard = Signal.where(True, np.array([loss], "float32"))
        statistics = loss_statistics.observe(statistics, heard, DECAYS, "train")
    return statistics


def test_the_mean_is_that_of_an_exponential_window():
    losses = [3.0, 1.0, 2.0]
    mean = loss_statistics.corrected_mean(observed(losses), DECAYS, "train")
    for value, decay in zip(np.asarray(mean)[0], DECAYS, strict=True):
        np.testing.assert_allclose(value, np.average(losses, weights=[decay**2, decay, 1]), 1e-5)


def test_an_unknown_loss_changes_nothing():
    with_gap, without = observed([3.0, np.nan, 1.0, np.inf]), observed([3.0, 1.0])
    for name in without:
        np.testing.assert_array_equal(with_gap[name], without[name])


def test_before_any_loss_all_is_neutral():
    statistics = observed([])
    assert not np.asarray(loss_statistics.is_known(statistics, "train")).any()
    assert np.asarray(loss_statistics.corrected_mean(statistics, DECAYS, "train")).tolist() == [
        [0.0, 0.0]
    ]
    zero = loss_statistics.normalise(statistics, np.zeros((1, 1), "float32"), DECAYS, "train")
    assert np.asarray(zero).tolist() == [[0.0, 0.0]]


def test_normalised_losses_are_clipped_and_signed():
    statistics = observed([1.0, 2.0, 1.0, 2.0])
    for loss, expected in ((100.0, 5.0), (-100.0, -5.0)):
        value = loss_statistics.normalise(
            statistics, np.array([[loss]], "float32"), DECAYS, "train"
        )
        assert np.asarray(value).tolist() == [[expected, expected]]
