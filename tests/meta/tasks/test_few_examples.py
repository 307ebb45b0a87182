import numpy as np
import pytest
from problems import random_table

from lopt_keras import rules
from meta import random, tasks
from meta.inner.training import InnerTraining
from meta.tasks import mixture
from meta.tasks.sampling import distribution

SEED = random.seed(6)


def drawn(num_examples, batch_size=400, num=3):
    task = tasks.get(
        "few_examples",
        dataset=random_table(3),
        num_examples=num_examples,
        batch_size=batch_size,
    )
    return task, task.draw(SEED, num)


@pytest.mark.parametrize("count", [1, 7, 7.9, 200])
def test_a_problem_sees_its_own_examples_equally_often_and_no_others(count):
    task, setting = drawn(count)
    batches = [task.batch("train", random.fold_in(SEED, i), 3, setting) for i in range(10)]
    inputs = np.concatenate([batch[0] for batch in batches], axis=1)
    table = np.asarray(task.dataset.split("train")[0])
    for own, examples in zip(inputs, setting["examples"].numpy(), strict=True):
        # Some are drawn twice.
        rows, times = np.unique(table[examples[: int(count)]], axis=0, return_counts=True)
        seen, counts = np.unique(own, axis=0, return_counts=True)
        np.testing.assert_array_equal(seen, rows)
        expected = len(own) * times / int(count)
        assert (abs(counts - expected) < 5.0 * np.sqrt(expected)).all()
    assert count == 1 or not np.array_equal(*setting["examples"][:2, : int(count)])


def test_targets_stay_with_their_inputs():
    task, setting = drawn(20)
    inputs, targets = task.batch("train", SEED, 3, setting)
    table = task.dataset.split("train")
    for own, labels in zip(inputs.numpy()[0, :50], targets.numpy()[0, :50], strict=True):
        (row,) = np.flatnonzero((np.asarray(table[0]) == own).all(axis=1))
        assert table[1][row] == labels


def test_validation_examples_are_all_of_them():
    task, setting = drawn(5, batch_size=4000)
    inputs, _ = task.batch("validation", SEED, 3, setting)
    assert len(np.unique(inputs.numpy()[0], axis=0)) == len(task.dataset.split("validation")[0])


def test_they_can_be_learned_by_heart():
    """The train loss goes to zero, and the validation loss ends above its lowest."""
    config = distribution.config("few_examples", 0)
    architecture = {"dataset": "iris_plants", "hidden_units": [32], "activation": "tanh"}
    config = config._replace(
        architecture=architecture, setting={"init_scale": 1.0, "num_examples": 20.0}
    )
    adam = rules.Adam(learning_rate=0.03)
    (curves,) = InnerTraining(config.build(), adam, 1, 4, 600, True)([adam.init_theta()], SEED)
    assert curves.train[-20:].mean() < 0.01
    assert curves.held_out[-20:].mean() > 2.0 * curves.held_out.mean(axis=1).min()


@pytest.mark.parametrize("count", [0, 0.9, 201, float("nan")])
def test_a_count_out_of_bounds_is_named(count):
    with pytest.raises(ValueError, match=r"`num_examples` must be (in \[1, 200\]|a finite)"):
        tasks.get("few_examples", num_examples=count)


def test_mixtures_may_have_it_and_sets_stay_as_they_were():
    given = mixture.Mixture.parse(
        '{"families": {"few_examples": 1, "image_mlp": 1}, "num_tasks": 4}'
    )
    assert {config.family for config in given.candidates()} == {"few_examples", "image_mlp"}
    assert all("few_examples" not in distribution.families(of) for of in distribution.SETS)
    assert tasks.sample_config(44, "heldout_easy").family == "vision_transformer"
