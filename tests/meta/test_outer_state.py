import numpy as np
import pytest
from meta.training import outer_state

THETA = {"a": np.float32(2.0), "w0": np.arange(6, dtype="float32").reshape(2, 3)}
OPTIMIZER = [np.int64(7), *[np.full((2, 3), i, "float32") for i in range(11)]]
NUMBERS = {"step": 7, "seconds": 1.5, "smoothed_loss": 0.25}


@pytest.fixture
def file(tmp_path):
    path = str(tmp_path / outer_state.FILE)
    outer_state.write(path, THETA, OPTIMIZER, NUMBERS)
    return path


def test_what_is_written_is_read(file, tmp_path):
    theta, optimizer, numbers = outer_state.read(file)
    assert set(theta) == set(THETA)
    for name, value in THETA.items():
        np.testing.assert_array_equal(theta[name], value)
    for one, other in zip(optimizer, OPTIMIZER, strict=True):
        np.testing.assert_array_equal(one, other)
    assert numbers == NUMBERS
    assert [path.name for path in tmp_path.iterdir()] == [outer_state.FILE]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other", "pickled"])
def test_what_cannot_be_read_is_named(file, damage):
    with open(file, "rb") as f:
        content = f.read()
    if damage == "other":
        np.savez(file, x=1.0)
    elif damage == "pickled":
        np.savez(file, step=np.array([{}], object), seconds=0.0, smoothed_loss=0.0)
    else:
        with open(file, "wb") as f:
            f.write({"cut": content[:200], "empty": b"", "missing": b""}[damage])
    path = f"{file}.not" if damage == "missing" else file
    with pytest.raises(ValueError, match=outer_state.FILE):
        outer_state.read(path)


def test_the_digest_tells_states_apart(file, tmp_path):
    other = str(tmp_path / "other.npz")
    outer_state.write(other, THETA, OPTIMIZER, {**NUMBERS, "step": 8})
    assert outer_state.digest(file) != outer_state.digest(other)
