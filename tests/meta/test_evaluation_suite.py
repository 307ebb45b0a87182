import pytest
from meta.tasks.sampling import distribution

from meta.evaluation import suite


def test_sets_and_families_by_name_and_number():
    entries = suite.parse("heldout_easy:3:4, two_moons:2, quadratic:1")
    expected = [distribution.sample_config(seed, "heldout_easy") for seed in (4, 5, 6)]
    expected += [distribution.config("two_moons", i, "heldout_families") for i in (0, 1)]
    expected += [distribution.config("quadratic", 0, "heldout_easy")]
    assert [entry.config for entry in entries] == expected
    assert len({entry.name for entry in entries}) == 6
    assert len(suite.parse("heldout_scale")) <= 20


def test_the_same_task_counts_once():
    assert suite.parse("quadratic:2,quadratic:3:1") == suite.parse("quadratic:4")


def test_a_task_in_json():
    (entry,) = suite.parse('{"family": "quadratic", "dimension": 4, "noise": 0.5}')
    task = entry.config.build()
    assert (task.dimension, task.noise) == (4, [0.5])
    assert task.get_config()["condition"] == [100.0]
    two = suite.parse('[{"family": "quadratic"}, {"family": "two_moons"}]')
    assert [entry.config.family for entry in two] == ["quadratic", "two_moons"]


def test_overrides_replace_arguments_of_the_tasks_that_have_them():
    entries = suite.parse("quadratic:1,image_mlp:1", {"batch_size": 1})
    assert [entry.config.family for entry in entries] == ["image_mlp"]
    assert entries[0].config.architecture["batch_size"] == 1
    (entry,) = suite.parse("quadratic:1", {"noise": 0.0, "dimension": 2})
    assert entry.config.setting["noise"] == 0.0
    assert entry.config.architecture == {"dimension": 2}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("nonsense:3", None, "must be of the sets.*'nonsense'"),
        ("quadratic:x", None, "NAME:COUNT.*quadratic:x"),
        ("quadratic:0", None, "at least one task"),
        ('{"family": "nonsense"}', None, "'family' must be one of"),
        ('{"family": "quadratic", "depth": 3}', None, "quadratic has the arguments.*depth"),
        ('{"family": ', None, "must be JSON"),
        ("[3]", None, "JSON objects"),
        ("quadratic:1", {"batch_size": 1}, "at least one task.*batch_size"),
    ],
)
def test_errors(text, overrides, message):
    with pytest.raises(ValueError, match=message):
        suite.parse(text, overrides)
