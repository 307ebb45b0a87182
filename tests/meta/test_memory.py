import pytest
from problems import small_mlp

from meta import memory, tasks


def test_what_fits_is_let_through():
    memory.check(small_mlp(), 32)


@pytest.mark.parametrize(
    ("task", "particles", "text"),
    [
        (tasks.get("digits_mlp", hidden_units=(10**7,)), 32, "32 particles.*0 parameters.*GiB"),
        (tasks.get("quadratic", dimension=10**4), 2**30, "1073741824 particles.*10000 parameters"),
        (tasks.get("quadratic", dimension=10**12), 2, "`dimension` of the task.*at most 10000000"),
        (tasks.get("digits_mlp", hidden_units=(4, 10**9)), 2, "`hidden_units`.*at most 10000000"),
    ],
    ids=("large", "many", "absurd", "absurd within"),
)
def test_what_does_not_fit_is_refused_before_it_is_made(task, particles, text):
    with pytest.raises(ValueError, match=text):
        memory.check(task, particles)
