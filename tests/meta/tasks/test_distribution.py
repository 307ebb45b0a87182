import numpy as np
import pytest

from meta import tasks
from meta.tasks.sampling import distribution

TRAIN = [tasks.sample_config(seed) for seed in range(2500)]


def held_out(of):
    return [tasks.sample_config(seed, of) for seed in range(300)]


def test_there_are_two_thousand_tasks_of_few_programs():
    assert len({config.key for config in TRAIN}) >= 2000
    programs = {config.program for config in TRAIN}
    most = sum(tasks.FAMILIES[name].num_architectures for name in distribution.families("train"))
    assert len(programs) <= most
    assert {config.family for config in TRAIN} == set(distribution.families("train"))


@pytest.mark.parametrize("of", tasks.SETS[1:])
def test_held_out_tasks_are_no_training_tasks(of):
    train = {config.key for config in TRAIN}
    others = held_out(of)
    assert len({config.key for config in others}) > 100
    assert not train & {config.key for config in others}
    for second in set(tasks.SETS[1:]) - {of}:
        assert not {c.key for c in others} & {c.key for c in held_out(second)}


def test_no_held_out_architecture_or_family_is_trained_on():
    programs = {config.program for config in TRAIN}
    assert not programs & {config.program for config in held_out("heldout_easy")}
    large = {config.program for config in held_out("train_scale")}
    assert not large & {config.program for config in held_out("heldout_easy")}
    assert not (programs | large) & {config.program for config in held_out("heldout_scale")}
    families = {config.family for config in TRAIN}
    assert not families & {config.family for config in held_out("heldout_families")}
    assert {config.family for config in held_out("heldout_easy")} <= families


def count(config):
    return sum(int(np.prod(shape)) for shape in config.build().parameter_shapes())


@pytest.mark.parametrize(
    ("of", "family", "most"),
    [("heldout_scale", family, 100) for family in distribution.families("heldout_scale")]
    + [("train_scale", family, 150) for family in distribution.families("train_scale")],
)
def test_large_tasks_are_as_much_larger_as_their_set_says(of, family, most):
    def sizes(of):
        found = distribution.architectures(family, of)
        setting = TRAIN[[c.family for c in TRAIN].index(family)].setting
        return [count(distribution.Config(family, architecture, setting)) for architecture in found]

    ratio = np.median(sizes(of)) / np.median(sizes("train"))
    assert 10 <= ratio <= most


def test_tasks_of_one_program_are_variants_of_one_task():
    groups = distribution.by_program(TRAIN)
    configs = next(iter(groups.values()))[:5]
    task = tasks.build(configs)
    assert task.num_variants == 5
    for name in configs[0].setting:
        assert list(getattr(task, name)) == [config.setting[name] for config in configs]
    with pytest.raises(ValueError, match="`configs`"):
        tasks.build([configs[0], next(iter(list(groups.values())[1]))])


def test_families_take_turns():
    known = distribution.families("train")
    assert [config.family for config in TRAIN[: len(known)]] == list(known)
    assert TRAIN[len(known) + 2] == distribution.config(known[2], 1)


def test_a_family_that_a_set_lacks_is_named():
    with pytest.raises(ValueError, match="`family` must be one of .*image_mlp.*'quadratic'"):
        distribution.config("quadratic", 0, "train_scale")


def test_an_unknown_set_is_named():
    with pytest.raises(ValueError, match="`of`.*'nope'"):
        tasks.sample_config(0, of="nope")
