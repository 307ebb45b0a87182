"""The commands as a newcomer meets them: help, wrong flags, missing packages, a full disk."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf
from absl import app

from export import backend, command

COMMANDS = {
    "meta_train": ("--horizon_known", "Meta-trains a learned optimizer"),
    "evaluate": ("--task_overrides", "Compares optimizers"),
    "export": ("--checkpoint_dir", "Exports a meta-training run"),
}
MODULES = ("meta.evaluate", "export.export")


def run(arguments, **environment):
    """Of a process with TensorFlow's own log level."""
    kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    path = os.pathsep.join(filter(None, [environment.pop("first", ""), *sys.path]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": path, **environment},
    )


def console(name, *flags):
    """What the script does that pip makes of an entry point."""
    code = f"import sys; sys.argv[0] = 'lopt'; from export.command import {name}; {name}()"
    return ["-c", code, *flags]


@pytest.fixture
def without_skimage(tmp_path):
    """A folder that makes Python believe that a package is missing."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['skimage'] = None\n")
    return str(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_console_commands_show_their_flags(name):
    flag, summary = COMMANDS[name]
    result = run(console(name, "--help"))
    assert flag in result.stdout
    assert summary in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("module", MODULES)
def test_a_wrong_flag_is_one_line_and_nothing_else(module, tmp_path):
    flags = {
        "meta.evaluate": [f"--out_dir={tmp_path / 'x'}", "--tasks=nope"],
        "export.export": [f"--checkpoint_dir={tmp_path}", f"--out={tmp_path / 'x'}"],
    }[module]
    result = run(["-m", module, *flags])
    assert result.returncode == 1
    error, hint, *others = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert hint == "--help shows the flags."
    assert not others
    assert result.stdout == ""
    assert not (tmp_path / "x").exists()


def test_weights_are_exported_for_a_model(tmp_path):
    shapes = ["--weights=default", "--shapes=[[3, 2], [2]]", '--names=["embedding", "bias"]']
    result = run(["-m", "export.export", *shapes, f"--out={tmp_path / 'x'}"])
    assert result.returncode == 0, result.stderr
    assert set(tf.saved_model.load(str(tmp_path / "x")).signatures) == {"init_state", "update"}


def test_a_missing_package_is_named_with_what_installs_it(without_skimage):
    result = run(console("meta_train", "--help"), first=without_skimage)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: Meta-training and evaluation need skimage: ")
    assert "pip install 'lopt_keras[meta]'" in line


def test_a_missing_package_is_named_by_python_m_too(without_skimage):
    result = run(["-m", "meta.train", "--help"], first=without_skimage)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "need skimage: pip install 'lopt_keras[meta]'" in line


def test_exporting_needs_no_extra(without_skimage):
    result = run(console("export", "--help"), first=without_skimage)
    assert "--checkpoint_dir" in result.stdout


def test_tensorflow_tells_all_where_that_is_asked_for():
    code = ["-c", "import export; import tensorflow as tf; tf.constant(1)"]
    assert run(code, TF_CPP_MIN_LOG_LEVEL="0").stderr != ""


def test_the_reason_of_an_error_is_one_line():
    told = "{{function_node __wrapped__SaveV2}} x; No space left on device [Op:SaveV2] name: \nmore"
    assert backend.reason(ValueError(told)) == "x; No space left on device"
    assert backend.reason(KeyError()) == "KeyError()"


def test_what_others_tell_at_the_start_is_not_lost(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import sys\nprint('I0000 00:00 noise', file=sys.stderr)\n"
        "print('the disk is on fire', file=sys.stderr)\nsys.stderr.flush()\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport runpy\n"
    code += f"runpy.run_path({command.__file__.replace('command', 'backend')!r})"
    assert run(["-c", code]).stderr == "the disk is on fire\n"


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (app.UsageError("--x is wrong"), "Error: --x is wrong\n--help shows the flags."),
        (OSError("No space left"), "Error: No space left"),
    ],
)
def test_what_a_user_can_mend_ends_with_a_line(raised, text):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as ended:
        command._main(main, [])
    assert ended.value.code == text


def test_an_interruption_is_no_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert command._main(main, []) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
