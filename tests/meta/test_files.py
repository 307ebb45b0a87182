import errno
import os

import pytest

from meta import files, provenance
from meta.evaluation import report
from meta.training import outer_state

WRITERS = {
    "results.json": lambda file: provenance.write_json(file, {"a": 1}),
    "results.csv": lambda file: report._write_csv(file, []),
    "outer_state.npz": lambda file: outer_state.write(file, {}, [], {"step": 1}),
}


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("old")
    with files.whole(file) as temporary:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(TypeError):
        provenance.write_json(file, {"half": object()})
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(name, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / name
    file.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=rf"{name}' cannot be written: No space left"):
        WRITERS[name](str(file))
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == [name]
