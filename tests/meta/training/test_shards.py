import numpy as np
import pytest

from meta import random
from meta.training import shards
from meta.training.shards import Shards


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_programs_are_drawn_in_proportion_to_their_weights(num_shards):
    weights = [5, 1, 3, 1]
    cut = Shards(0, num_shards, weights)
    drawn = [cut.unit(shard, step) for step in range(2000) for shard in range(num_shards)]
    fractions = np.bincount([unit.program for unit in drawn], minlength=4) / len(drawn)
    np.testing.assert_allclose(fractions, [0.5, 0.1, 0.3, 0.1], atol=0.03)
    assert {unit.pair for unit in drawn} == set(cut.pairs)
    # A share each, but for the programs at the edges.
    assert len(cut.pairs) <= len(weights) + num_shards - 1


def test_equal_programs_are_cut_between_them():
    assert Shards(0, 2, [1, 1]).pairs == [(0, 0), (1, 1)]
    assert Shards(0, 2, [1]).pairs == [(0, 0), (1, 0)]


def test_one_shard_draws_as_runs_that_began_without_shards():
    weights = [6, 3, 1]
    cut = Shards(4, 1, weights)
    for step in range(200):
        drawn = np.random.default_rng([4, step]).random() * 10
        assert cut.unit(0, step).program == np.searchsorted([6, 9, 10], drawn, side="right")


def test_shards_have_seeds_of_their_own():
    seed = random.seed(3)
    np.testing.assert_array_equal(shards.seed_of(seed, 0), seed)
    own = [tuple(shards.seed_of(seed, i).numpy()) for i in range(50)]
    assert len(set(own)) == 50


def test_the_average_is_added_in_order():
    values = np.float32([1e8, 1.0, -1e8, 3.0])
    mean = shards.average([{"a": x[None]} for x in values])
    expected = ((values[0] + values[1]) + values[2]) + values[3]
    assert mean["a"] == expected / np.float32(4)


def test_what_is_not_finite_counts_as_zero():
    gradients = [{"a": np.float32([np.nan, 1.0])}, {"a": np.float32([2.0, np.inf])}]
    np.testing.assert_array_equal(shards.average(gradients)["a"], [1.0, 0.5])
