"""What is compiled is kept for the next process."""

import os
import subprocess
import sys

import pytest

import lopt_keras

SCRIPT = """
import sys, tensorflow as tf, keras, lopt_keras
lopt_keras.keep_compiled_programs(sys.argv[1])
variable = keras.Variable([[1.0, 2.0]])
optimizer = lopt_keras.LearnedOptimizer()
optimizer.apply([tf.ones((1, 2))], [variable])
print(*variable.numpy().ravel())
"""


def test_the_next_process_compiles_nothing(tmp_path):
    directory = tmp_path / "programs"

    def run():
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(directory)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return output, {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}

    first, second = run(), run()
    assert first[1]
    assert first == second
    assert directory.stat().st_mode & 0o077 == 0


def test_it_is_refused_when_it_would_do_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(lopt_keras.programs, "_kept", {"a program": None})
    before = os.environ.get("TF_XLA_FLAGS")
    with pytest.raises(RuntimeError, match="before a LearnedOptimizer takes its first step"):
        lopt_keras.keep_compiled_programs(tmp_path)
    assert os.environ.get("TF_XLA_FLAGS") == before


def test_an_unusable_directory_is_named(monkeypatch):
    monkeypatch.setattr(lopt_keras.programs, "_kept", {})
    with pytest.raises(OSError, match="/dev/null"):
        lopt_keras.keep_compiled_programs("/dev/null/programs")
