import pytest
from absl import flags

from meta import smoke


@pytest.fixture
def program():
    """The flags of a program."""
    own = flags.FlagValues()
    flags.DEFINE_integer("smoked_steps", 100, "Steps.", lower_bound=1, flag_values=own)
    flags.DEFINE_list("smoked_names", ["a", "b", "c"], "Names.", flag_values=own)
    flags.DEFINE_multi_integer("smoked_counts", [8, 32], "Counts.", flag_values=own)
    flags.DEFINE_float("smoked_rate", 0.1, "Not made small.", flag_values=own)
    smoke.define(own, smoked_steps=2, smoked_names=["a"], smoked_counts=[1])
    return own


def values(program, *argv):
    program(["program", *argv])
    names = ("smoked_steps", "smoked_names", "smoked_counts", "smoked_rate")
    return [program[name].value for name in names]


def test_it_makes_small_what_was_not_given(program):
    assert values(program, "--smoke") == [2, ["a"], [1], 0.1]


@pytest.mark.parametrize("argv", [[], ["--nosmoke"]])
def test_without_it_nothing_changes(program, argv):
    assert values(program, *argv) == [100, ["a", "b", "c"], [8, 32], 0.1]


@pytest.mark.parametrize("smoke_first", [True, False])
def test_flags_that_are_given_keep_their_values(program, smoke_first):
    given = ["--smoked_steps=7", "--smoked_counts=5"]
    argv = ["--smoke", *given] if smoke_first else [*given, "--smoke"]
    assert values(program, *argv) == [7, ["a"], [5], 0.1]


def test_help_shows_the_sizes(program):
    assert "--smoked_steps=2, --smoked_names=a" in program["smoke"].help


def test_a_size_that_the_flag_refuses_is_an_error(program):
    del program.smoke
    smoke.define(program, smoked_steps=0)
    with pytest.raises(flags.IllegalFlagValueError, match="smoked_steps=0"):
        values(program, "--smoke")
