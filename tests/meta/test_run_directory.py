import json
import os
import signal
import subprocess
import sys
import time

import pytest
from meta.training import run_directory

RUN = {"flags": {"seed": 1}, "rule": {}}


def run_of(**flags):
    return {**RUN, "flags": flags}


def read(path):
    return json.loads((path / run_directory.RUN_FILE).read_text())


def leave_checkpoint(path):
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "ckpt-3.index").write_text("")


def test_a_new_directory_is_claimed(tmp_path):
    run_directory.claim(tmp_path / "a" / "b", {**RUN, "seed": 1})
    run = read(tmp_path / "a" / "b")
    assert run["flags"] == {"seed": 1}
    assert all(len(commit.removesuffix("-dirty")) == 40 for commit in run["commits"])


def test_the_same_flags_resume(tmp_path, monkeypatch):
    leave_checkpoint(tmp_path)
    (tmp_path / run_directory.RUN_FILE).write_text(json.dumps({**RUN, "commits": []}))
    for commit in ("one", "one", None, "two"):
        monkeypatch.setattr(run_directory, "commit", lambda commit=commit: commit)
        run_directory.claim(tmp_path, RUN)
    assert read(tmp_path)["commits"] == ["one", "two"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"seed": 2, "rule": "mlp"}, r"--seed=1\. Received: --seed=2"),
        ({"seed": 1}, r"--rule='mlp'\. Received: --rule=None"),
        ({"seed": 1, "rule": "mlp", "task": "x"}, r"--task=None\. Received: --task='x'"),
    ],
)
@pytest.mark.parametrize("left", ["checkpoint", "export"])
def test_other_flags_are_refused_where_there_is_something(tmp_path, flags, text, left):
    run_directory.claim(tmp_path, run_of(seed=1, rule="mlp"))
    (tmp_path / "export").mkdir() if left == "export" else leave_checkpoint(tmp_path)
    before = (tmp_path / run_directory.RUN_FILE).read_bytes()
    with pytest.raises(ValueError, match=text):
        run_directory.claim(tmp_path, run_of(**flags))
    assert (tmp_path / run_directory.RUN_FILE).read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_claim_without_a_checkpoint_can_be_replaced(tmp_path, content):
    run_directory.claim(tmp_path, run_of(seed=1))
    if content is not None:
        (tmp_path / run_directory.RUN_FILE).write_text(content)
    run_directory.claim(tmp_path, run_of(seed=2))
    assert read(tmp_path)["flags"] == {"seed": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"flags": {}}',
        b'{"flags": 1, "rule": {}, "commits": []}',
        b"\xff",
        b"[" * 10**5,
    ],
)
def test_a_damaged_description_is_named(tmp_path, content):
    leave_checkpoint(tmp_path)
    (tmp_path / run_directory.RUN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json.*is damaged"):
        run_directory.claim(tmp_path, RUN)


def test_checkpoints_of_an_unknown_run_are_left_alone(tmp_path):
    leave_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="holds checkpoints but no run.json"):
        run_directory.claim(tmp_path, RUN)


def test_other_reference_losses_are_refused(tmp_path):
    run_directory.claim(tmp_path, {**RUN, "references_sha256": "one"})
    leave_checkpoint(tmp_path)
    run_directory.claim(tmp_path, {**RUN, "references_sha256": "one"})
    run_directory.check(tmp_path, RUN)  # They are not known yet.
    with pytest.raises(ValueError, match="other reference losses"):
        run_directory.claim(tmp_path, {**RUN, "references_sha256": "two"})


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    run_directory.claim(tmp_path, run_of())
    assert read(tmp_path)["commits"] == []


def hold(directory):
    """A process that has locked a directory."""
    code = (
        "import sys, time\nfrom meta import run_directory\n"
        f"with run_directory.lock({str(directory)!r}):\n"
        "    print('locked', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    process = hold(tmp_path / "x")
    try:
        with (
            pytest.raises(ValueError, match=f"in use by process {process.pid} on "),
            run_directory.lock(tmp_path / "x"),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (tmp_path / "x" / "lock").read_text()  # Stale.
    with run_directory.lock(tmp_path / "x"):
        assert json.loads((tmp_path / "x" / "lock").read_text())["process"] == os.getpid()
        (tmp_path / "x" / "result").write_text("")
    assert (tmp_path / "x" / "lock").read_text() == ""


def test_another_machine_is_believed_for_as_long_as_it_shows_life(tmp_path):
    file = tmp_path / "lock"
    file.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "noon"}))
    with (
        pytest.raises(ValueError, match="in use by process 7 on elsewhere, since noon"),
        run_directory.lock(tmp_path),
    ):
        pass
    os.utime(file, (time.time() - 600,) * 2)
    with run_directory.lock(tmp_path):
        pass


def test_a_lock_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "_SIGN_OF_LIFE", 0.01)
    with run_directory.lock(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        deadline = time.monotonic() + 10
        while os.path.getmtime(tmp_path / "lock") == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_nothing_stays_of_a_lock_where_nothing_was_written(tmp_path):
    with run_directory.lock(tmp_path / "x"):
        pass
    assert not (tmp_path / "x").exists()


def test_where_nothing_can_be_written_is_said_before_anything_is_tried(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x" / "y"):
        with pytest.raises(ValueError, match="cannot be a directory.*/file'"):
            run_directory.check_writable(place)
    monkeypatch.setattr(os, "access", lambda *args: False)  # As nothing is, to root.
    with pytest.raises(ValueError, match="no permission"):
        run_directory.check_writable(tmp_path / "x")
