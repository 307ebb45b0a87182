import numpy as np
import pytest
import tensorflow as tf

from lopt_keras import rounding


def rounded(x, seed):
    return tf.cast(rounding.to_bfloat16(tf.constant(x), tf.constant(seed)), tf.float32).numpy()


@pytest.mark.parametrize("value", [1.0 + 2**-10, -1.0 - 2**-10, 3.14159, -1e-20, 1e20])
def test_the_mean_is_kept(value):
    x = np.full(100_000, value, "float32")
    y = rounded(x, 1)
    neighbours = np.unique(y)
    assert len(neighbours) == 2
    assert neighbours[0] < np.float32(value) < neighbours[1]
    gap = neighbours[1] - neighbours[0]
    # Five standard errors of a mean of Bernoulli trials.
    assert abs(y.mean(dtype="float64") - np.float32(value)) < 5 * 0.5 * gap / np.sqrt(len(x))


def test_what_bfloat16_can_hold_is_not_changed():
    x = np.array([0.0, 1.0, -2.0, 0.5, 1.5, -3.0e38], "float32")
    exact = tf.cast(tf.cast(x, tf.bfloat16), tf.float32).numpy()
    for seed in range(10):
        np.testing.assert_array_equal(rounded(exact, seed), exact)


def test_a_seed_gives_the_same_and_another_one_something_else():
    x = np.linspace(1, 2, 1000, dtype="float32").reshape(10, 100)
    np.testing.assert_array_equal(rounded(x, 3), rounded(x, 3))
    assert rounded(x, 3).shape == x.shape
    agreements = (rounded(x, 3) == rounded(x, 4)).mean()
    assert 0.55 < agreements < 0.78  # Of two independent roundings two thirds agree.


def test_neighbouring_entries_and_seeds_are_not_correlated():
    x = np.full((200, 1000), 1.0 + 2**-8, "float32")  # Half way.
    up = np.stack([rounded(row, seed) > 1.004 for seed, row in enumerate(x)]) - 0.5
    assert abs((up[:, 1:] * up[:, :-1]).mean()) < 5 * 0.25 / np.sqrt(up.size)
    assert abs((up[1:] * up[:-1]).mean()) < 5 * 0.25 / np.sqrt(up.size)


def test_a_slow_accumulator_follows_only_if_rounded_at_random():
    at_random = to_nearest = np.zeros(1000, "float32")
    for i in range(2000):
        at_random = rounded((0.999 * at_random + 0.001).astype("float32"), i)
        to_nearest = tf.cast(tf.cast(0.999 * to_nearest + 0.001, tf.bfloat16), tf.float32).numpy()
    exact = 1 - 0.999**2000
    assert abs(at_random.mean() - exact) < 0.01
    assert abs(to_nearest.mean() - exact) > 0.3
