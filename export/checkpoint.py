"""The directory of a meta-training run, as far as an export is made from it."""

import json
import os
import re
import warnings
from typing import Any

import tensorflow as tf

from export import backend, saved_model
from lopt_keras import rules
from lopt_keras.types import Arrays

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
_THETA, _VALUE = "theta/", "/.ATTRIBUTES/VARIABLE_VALUE"


def export_checkpoint(
    checkpoint_dir: str | os.PathLike[str], out: str | os.PathLike[str], overwrite: bool = False
) -> None:
    """Exports the newest whole checkpoint of a run.

    The export's metadata has the run's flags, task, seed and commits, and
    `outer_steps`, `meta_loss` (smoothed) and `seconds` of meta-training.

    Args:
        checkpoint_dir: the `--out_dir` of `meta.train`, or its `checkpoints`.
        out: directory to write; see `saved_model.save`.
        overwrite: whether an existing export is replaced.

    Raises:
        FileExistsError: see `saved_model.save`.
        ValueError: if the directory holds no run, or no checkpoint that can be read.
    """
    directory = os.path.abspath(os.fspath(checkpoint_dir))
    if os.path.basename(directory) == CHECKPOINTS:
        directory = os.path.dirname(directory)
    run = read_run(directory)
    if run is None:
        raise ValueError(
            f"`checkpoint_dir` holds no meta-training run: no {RUN_FILE} in {directory!r}"
        )
    newest = newest_whole(directory)
    if newest is None:
        raise ValueError(f"There is no checkpoint yet in {directory!r}.")
    numbers = (_read_scalar(newest, name) for name in ("step", "smoothed_loss", "seconds"))
    metadata = provenance(run, *numbers)
    saved_model.save(out, rules.get(run["rule"]), _read_theta(newest), metadata, overwrite)


def provenance(
    run: dict[str, Any], outer_steps: float, meta_loss: float, seconds: float
) -> dict[str, Any]:
    """What the metadata of an export says of the run that it is from: dict.

    Args:
        run: what `run.json` holds.
        outer_steps, meta_loss, seconds: numbers, where the run stands.
    """
    described = {name: value for name, value in run.items() if name != "rule"}
    numbers = {
        "outer_steps": int(outer_steps),
        "meta_loss": float(meta_loss),
        "seconds": float(seconds),
    }
    return described | numbers


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a run's `run.json` holds: a dict with `flags`, `rule` and `commits`; None if absent.

    Raises:
        ValueError: if it is damaged, naming the file and what is wrong.
    """
    file = os.path.join(directory, RUN_FILE)
    try:
        with open(file, encoding="utf-8") as f:
            run = json.load(f)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"The description of the run, {file!r}, is damaged: {error}") from error
    kinds = {"flags": dict, "rule": dict, "commits": list}
    if not isinstance(run, dict) or not all(
        isinstance(run.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(
            f"The description of the run, {file!r}, is damaged: it must be a JSON object with "
            f"{', '.join(kinds)}."
        )
    return run


def has_checkpoints(directory: str | os.PathLike[str]) -> bool:
    """Whether a run has left any checkpoint, whole or not."""
    return bool(_candidates(os.path.join(directory, CHECKPOINTS)))


def restore_newest(
    checkpoint: tf.train.Checkpoint, directory: str | os.PathLike[str], what: str
) -> str | None:
    """Restores the newest whole checkpoint of a directory.

    Args:
        checkpoint: of which all variables have to be in the file.
        directory: the `--out_dir` of a run.
        what: whose checkpoint it should be, for the error.

    Returns:
        The path of the checkpoint, or None if there is none.

    Raises:
        ValueError: if there are checkpoints, but none that is whole and of such variables.
    """
    newest = newest_whole(directory)
    if newest is not None:
        try:
            checkpoint.restore(newest).assert_consumed()
        except (AssertionError, tf.errors.OpError, ValueError) as error:
            raise ValueError(
                f"The checkpoint {newest!r} is not one of this {what}, or of another "
                f"version: {backend.reason(error)}"
            ) from error
    return newest


def newest_whole(directory: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint of a run of which every byte can be read.

    It warns of newer ones that cannot.

    Args:
        directory: of the run.

    Returns:
        The path, as `tf.train.Checkpoint` takes it; None if there are no checkpoints.

    Raises:
        ValueError: if there are checkpoints, but none is whole.
    """
    damaged = {}
    for path in _candidates(os.path.join(directory, CHECKPOINTS)):
        try:
            _read_all(path)
        except Exception as error:  # TensorFlow's reader raises many kinds.
            damaged[os.path.basename(path)] = backend.reason(error)
            continue
        if damaged:
            warnings.warn(
                f"{_listing(damaged)} The newest whole checkpoint is {path!r}.", stacklevel=2
            )
        return path
    if damaged:
        raise ValueError(
            f"No checkpoint in {directory!r} is whole. {_listing(damaged)} "
            f"To start over, remove {CHECKPOINTS!r} there, or choose another directory."
        )
    return None


def step_of(path: str) -> int:
    """The outer step of a checkpoint, from its name."""
    return int(path.rpartition("-")[2])


def _listing(damaged: dict[str, str]) -> str:
    return " ".join(f"{name} cannot be read: {reason}." for name, reason in damaged.items())


def _candidates(directory: str) -> list[str]:
    """The paths of all checkpoints: first the one that TensorFlow's own list says is the newest.

    The others follow, the newest first. Data without an index is no checkpoint unless it is
    listed: the process was killed while it was writing.
    """
    if not os.path.isdir(directory):
        return []
    files = (re.fullmatch(r"(ckpt-\d+)\.index", name) for name in os.listdir(directory))
    names = {match.group(1) for match in files if match}
    listed = _listed(os.path.join(directory, "checkpoint"))
    others = sorted(names - set(listed), key=step_of, reverse=True)
    return [os.path.join(directory, name) for name in (*listed, *others)]


def _listed(file: str) -> list[str]:
    """The name of the newest checkpoint in TensorFlow's own list, if it can be read: list."""
    try:
        with open(file, encoding="utf-8") as f:
            text = f.read()
    except (OSError, UnicodeDecodeError):
        return []
    return re.findall(r'^model_checkpoint_path: "(?:.*/)?(ckpt-\d+)"$', text, re.MULTILINE)[:1]


def _read_all(path: str) -> None:
    """Reads every tensor, by which TensorFlow compares every checksum."""
    reader = tf.train.load_checkpoint(path)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _read_theta(checkpoint: str) -> Arrays:
    reader = tf.train.load_checkpoint(checkpoint)
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(_THETA)]
    return {
        name.removeprefix(_THETA).removesuffix(_VALUE): reader.get_tensor(name) for name in names
    }


def _read_scalar(checkpoint: str, name: str) -> Any:
    return tf.train.load_variable(checkpoint, name + _VALUE)
