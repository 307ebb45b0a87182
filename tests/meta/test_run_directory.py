import json
import subprocess

import pytest

from meta import run_directory


def read(path):
    return json.loads((path / run_directory.RUN_FILE).read_text())


def test_a_new_directory_is_claimed(tmp_path):
    run_directory.claim(tmp_path / "a" / "b", {"flags": {"seed": 1}, "seed": 1})
    run = read(tmp_path / "a" / "b")
    assert run["flags"] == {"seed": 1}
    assert all(len(commit.removesuffix("-dirty")) == 40 for commit in run["commits"])


def test_the_same_flags_resume(tmp_path, monkeypatch):
    for commit in ("one", "one", None, "two"):
        monkeypatch.setattr(run_directory, "commit", lambda commit=commit: commit)
        run_directory.claim(tmp_path, {"flags": {"seed": 1}})
    assert read(tmp_path)["commits"] == ["one", "two"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"seed": 2, "rule": "mlp"}, r"--seed=1\. Received: --seed=2"),
        ({"seed": 1}, r"--rule='mlp'\. Received: --rule=None"),
        ({"seed": 1, "rule": "mlp", "task": "x"}, r"--task=None\. Received: --task='x'"),
    ],
)
def test_other_flags_are_refused(tmp_path, flags, text):
    run_directory.claim(tmp_path, {"flags": {"seed": 1, "rule": "mlp"}})
    before = (tmp_path / run_directory.RUN_FILE).read_bytes()
    with pytest.raises(ValueError, match=text):
        run_directory.claim(tmp_path, {"flags": flags})
    assert (tmp_path / run_directory.RUN_FILE).read_bytes() == before


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    run_directory.claim(tmp_path, {"flags": {}})
    assert read(tmp_path)["commits"] == []
