"""Which checkpoint of a run counts, when some are damaged or lost."""

import glob
import os
import shutil

import pytest
import tensorflow as tf

from export import checkpoint

NEWEST = "ckpt-9"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    variable = tf.Variable(tf.zeros([100]))
    kept = tf.train.Checkpoint(theta={"w": variable})
    manager = tf.train.CheckpointManager(kept, str(path / "checkpoints"), max_to_keep=3)
    for step in (3, 6, 9):
        manager.save(checkpoint_number=step)
    return path


@pytest.fixture
def run(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "run")


def data_of(run, name=NEWEST):
    return run / "checkpoints" / f"{name}.data-00000-of-00001"


def index_of(run, name=NEWEST):
    return run / "checkpoints" / f"{name}.index"


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "data truncated": lambda run: os.truncate(data_of(run), 100),
    "data emptied": lambda run: os.truncate(data_of(run), 0),
    "data missing": lambda run: os.remove(data_of(run)),
    "data altered": lambda run: flip_bit(data_of(run)),
    "index truncated": lambda run: os.truncate(index_of(run), 100),
    "index emptied": lambda run: os.truncate(index_of(run), 0),
    "index missing": lambda run: os.remove(index_of(run)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_whole_one_counts_and_what_is_wrong_is_said(run, damage):
    DAMAGE[damage](run)
    with pytest.warns(UserWarning, match="ckpt-9 cannot be read: .*whole checkpoint is .*ckpt-6'"):
        newest = checkpoint.newest_whole(run)
    assert checkpoint.step_of(newest) == 6
    os.truncate(data_of(run, "ckpt-6"), 0)
    with pytest.warns(UserWarning, match="ckpt-9 cannot.*ckpt-6 cannot"):
        assert checkpoint.step_of(checkpoint.newest_whole(run)) == 3


@pytest.mark.parametrize("content", [None, "", "garbage {", b"\xff\xfe"])
def test_the_list_is_not_needed(run, content, recwarn):
    listed = run / "checkpoints" / "checkpoint"
    os.remove(listed)
    if content is not None:
        listed.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert checkpoint.has_checkpoints(run)
    assert checkpoint.step_of(checkpoint.newest_whole(run)) == 9
    assert not recwarn.list


def test_what_the_list_says_counts_where_it_is_whole(run):
    listed = run / "checkpoints" / "checkpoint"
    listed.write_text(listed.read_text().replace("ckpt-9", "ckpt-6", 1))
    assert checkpoint.step_of(checkpoint.newest_whole(run)) == 6


def test_where_none_is_whole_each_is_named(run):
    for file in glob.glob(str(run / "checkpoints" / "*.index")):
        os.truncate(file, 10)
    with pytest.raises(ValueError, match="No checkpoint in .* is whole. ckpt-9.*ckpt-6.*ckpt-3"):
        checkpoint.newest_whole(run)


def test_where_there_are_none_there_are_none(tmp_path):
    assert checkpoint.newest_whole(tmp_path) is None
    assert not checkpoint.has_checkpoints(tmp_path)
    # Killed while it wrote the first.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-3.data-00000-of-00001").write_text("x")
    assert checkpoint.newest_whole(tmp_path) is None
