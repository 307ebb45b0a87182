"""Selection, inheritance and genealogy, on planted scores."""

import json

import numpy as np
import pytest

from meta.population import plots
from meta.population.evolution import FACTORS, Copy, Evolution
from meta.population.genealogy import Genealogy
from meta.population.members import Hyperparameters

SCORES = np.float32([0.3, -0.5, 0.9, np.nan, -0.9, 0.0, 0.1, 0.2])


def rng(seed=0):
    return np.random.default_rng(seed)


def test_truncation_copies_the_best_over_the_worst():
    evolution = Evolution("truncation", num_copied=2)
    seen = set()
    for seed in range(20):
        copies = evolution.copies(SCORES, rng(seed))
        assert [copy.loser for copy in copies] == [3, 2]  # NaN is worst.
        seen |= {copy.winner for copy in copies}
    assert seen == {4, 1}


def test_tournaments_copy_the_best_of_a_few_over_the_worst_of_them():
    evolution = Evolution("tournament", num_copied=2, tournament_size=3)
    fitness = np.nan_to_num(SCORES, nan=np.inf)
    losers = set()
    for seed in range(50):
        copies = evolution.copies(SCORES, rng(seed))
        assert len(copies) == 2
        members = [member for copy in copies for member in copy]
        assert len(set(members)) == 4  # Nobody is both, and nobody twice.
        assert all(fitness[copy.winner] < fitness[copy.loser] for copy in copies)
        losers |= {copy.loser for copy in copies}
    # Softer than truncation: not only the worst of all lose, but never the two best.
    assert {3, 2, 0} < losers <= set(range(8)) - {4, 1}


def test_without_selection_nobody_is_copied():
    assert Evolution("none").copies(SCORES, rng()) == []


def hyperparameters():
    values = np.float32([0.1, 0.2, 0.4, 0.8])
    return Hyperparameters(values, values / 2, np.ones(4, np.float32))


def inherit(copies, trainers, seed=0, itself=True, **kwargs):
    config = {"multiplier": (0.1, 0.9), "stddev": (0.05, 0.45), "resampled": 0.0, **kwargs}
    evolution = Evolution(new_trainer=config.pop("new_trainer", 0.0), **config)
    return evolution.inherit(copies, trainers, hyperparameters(), 4, rng(seed), itself)


def test_a_copy_inherits_trainer_and_hyperparameters_changed_by_a_factor():
    ratios = set()
    for seed in range(10):
        trainers, changed = inherit([Copy(0, 2)], [1, 1, 3, 2], seed)
        assert trainers.tolist() == [3, 1, 3, 2]
        before = hyperparameters()
        np.testing.assert_array_equal(changed.multiplier[1:], before.multiplier[1:])
        ratios.add(round(float(changed.multiplier[0] / before.multiplier[2]), 4))
        # A range of one value holds a hyperparameter fast.
        np.testing.assert_array_equal(changed.length, before.length)
    assert ratios == set(FACTORS)


def test_the_copy_of_one_that_trains_itself_trains_itself():
    assert inherit([Copy(0, 2)], [1, 1, 2, 2])[0].tolist() == [0, 1, 2, 2]
    # Where the pool is not the population, the same index is the same trainer.
    assert inherit([Copy(0, 2)], [1, 1, 2, 2], itself=False)[0].tolist() == [2, 1, 2, 2]


def test_trainers_and_hyperparameters_may_be_drawn_anew():
    drawn = [inherit([Copy(0, 2)], [1, 1, 2, 2], seed, new_trainer=1.0)[0][0] for seed in range(30)]
    assert set(drawn) == {0, 1, 2, 3}
    multipliers = [
        inherit([Copy(0, 2)], [1, 1, 2, 2], seed, resampled=1.0)[1].multiplier[0]
        for seed in range(30)
    ]
    assert len(set(multipliers)) == 30
    assert min(multipliers) < 0.2 < 0.6 < max(multipliers)


def test_hyperparameters_stay_in_their_range():
    changed = [inherit([Copy(0, 3)], [0] * 4, seed)[1].multiplier[0] for seed in range(10)]
    assert max(changed) == np.float32(0.9)


def test_members_start_log_uniform_in_the_ranges():
    drawn = Evolution(multiplier=(0.01, 1.0)).draw(rng(), 1000)
    assert np.quantile(drawn.multiplier, 0.5) == pytest.approx(0.1, rel=0.2)
    assert drawn.multiplier.min() > 0.01
    assert (drawn.length == 1).all()


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"selection": "roulette"}, "`selection` must be one of .*'roulette'"),
        ({"num_copied": 0}, "num_copied"),
        ({"tournament_size": 1}, "tournament_size"),
        ({"multiplier": (1.0, 0.1)}, r"`multiplier` must be \(low, high\).*\(1.0, 0.1\)"),
        ({"stddev": (0.0, 0.1)}, "stddev"),
        ({"length": (0.5, 1.5)}, "length"),
        ({"multiplier": 3.0}, "multiplier"),
        ({"resampled": 1.5}, "`resampled` must be a probability.*1.5"),
        ({"new_trainer": -0.1}, "new_trainer"),
    ],
)
def test_arguments_are_checked(kwargs, text):
    with pytest.raises(ValueError, match=text):
        Evolution(**kwargs)


@pytest.mark.parametrize(
    ("selection", "num_members", "least"),
    [("none", 1, 2), ("truncation", 3, 4), ("tournament", 4, 5)],
)
def test_a_population_must_be_large_enough(selection, num_members, least):
    evolution = Evolution(selection, num_copied=2)
    with pytest.raises(
        ValueError, match=f"`num_members` must be .*{least}.*num_members={num_members}"
    ):
        evolution.check_size(num_members)
    evolution.check_size(least)


def genealogy():
    """Of three members: 2 becomes a copy of 0, then 1 one of 2, then 0 one of 1."""
    tree = Genealogy(3)
    copies = [[Copy(2, 0)], [Copy(1, 2)], [Copy(0, 1)]]
    for i, made in enumerate(copies):
        scores = np.float32([-i, -i - 0.5, np.nan])
        values = Hyperparameters(*np.full((3, 3), 0.1 * (i + 1), np.float32))
        tree.record(10 * (i + 1), scores, scores, [0, 1, 1], values, [2], made)
    return tree


def test_founders():
    assert genealogy().founders().tolist() == [[0, 1, 2], [0, 1, 0], [0, 0, 0]]


def test_ancestry():
    line = genealogy().ancestry(1)
    assert [(e["step"], e["member"], e["copied"]) for e in line] == [
        (10, 0, False),
        (20, 2, True),
        (30, 1, True),
    ]
    assert [e["trainer"] for e in line] == [0, 1, 1]
    assert line[-1]["score"] == -2.5
    assert line[1]["score"] is None
    assert line[0]["hyperparameters"] == {"multiplier": 0.1, "stddev": 0.1, "length": 0.1}


def test_a_line_in_which_nothing_changes_is_told_once():
    tree = Genealogy(2)
    for i in range(5):
        tree.record(i, np.zeros(2), np.zeros(2), [1, 0], Hyperparameters(*np.ones((3, 2))), [], [])
    assert len(tree.ancestry(0)) == 1


def test_a_genealogy_is_json_and_back():
    text = genealogy().to_json()
    again = Genealogy.parse(text)
    assert again.to_json() == text
    assert json.loads(text)["generations"][0]["scores"][2] is None
    np.testing.assert_array_equal(again.scores, genealogy().scores)
    assert again.steps.tolist() == [10, 20, 30]


def test_the_picture(tmp_path):
    plots.plot(genealogy(), 1, tmp_path / "genealogy.png")
    assert (tmp_path / "genealogy.png").read_bytes().startswith(b"\x89PNG")
