"""Writing a learned optimizer as a SavedModel, all or nothing."""

import glob
import json
import math
import operator
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import lopt_keras
from export import backend, locks, signatures
from lopt_keras import rules, saved_model
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Arrays, Shape

# Steps with all tensors count entries with int32.
_MOST_ENTRIES = 2**31 - 1
_TEMPORARY, _REPLACED = ".tmp-", ".replaced"


def save(
    path: str | os.PathLike[str],
    rule: UpdateRule,
    theta: Mapping[str, Any],
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
    shapes: Sequence[Shape] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Writes a SavedModel directory that `LearnedOptimizer(weights=path)` reads.

    Its variables are theta. Its signatures run the rule without any Python of
    ours, on one tensor of rank r and any shape, for each r in `signatures.RANKS`:

    - `init_state_rank_r(parameter)` gives `state_*`, before the first step;
    - `update_rank_r(parameter, gradient, state_*, step)` gives the new
      `parameter` and `state_*`; `step` counts from 0, an int32 scalar.

    Some rules have more or fewer:

    - A rule with state that belongs to no tensor also takes and gives `shared_*`, the same
      for all tensors of a step.
    - A rule that uses losses or the horizon takes `train_loss`, `validation_loss` and
      `total_steps`. They are float32 scalars, NaN if they are not known.
    - A rule that mixes or fuses tensors has none of these: it cannot step with one tensor.
    - A rule whose update depends on the order of the axes has signatures for ranks up to 2,
      unless it takes all tensors as matrices.

    With `shapes`, two signatures more take all tensors of one model, for any rule:

    - `init_state(parameter_0, parameter_1, ...)` gives the state: `state_I_*` of tensor I,
      `shared_*`, and for a rule that averages `average_0`, `average_1`, ...;
    - `update(parameter_I, gradient_I, the state, step)` gives the new `parameter_I` and state.
      The averages are the weights to evaluate and keep. Signals are as above. A gradient that
      is not finite leaves all as it was.

    The asset `theta.npz` holds theta as plain arrays, which is what
    `LearnedOptimizer` reads. The asset `metadata.json` holds the given metadata and:

    - `format_version`, `rule` (class name and config), `versions` (packages);
    - `files`: sha256 of every other file; `sha256`: of the metadata itself.

    Args:
        path: directory to write.
        rule: `UpdateRule`.
        theta: dict from name to array.
        metadata: dict that JSON can hold: where the weights come from.
        overwrite: whether an existing export is replaced.
        shapes: of the trainable variables of a model, in their order.
        names: of these variables, such as `variable.path`. Rules may step in another way with
            variables that have "embedding" in their name. By default they have no names.

    Raises:
        FileExistsError: if `path` exists and is not to be overwritten, or is no export.
        TypeError, ValueError: if theta does not fit the rule, the metadata is no JSON, or a shape
            is none.
    """
    shapes = None if shapes is None else _checked_shapes(shapes)
    if names is not None:
        _check_names(names, shapes)
    path = os.path.abspath(os.fspath(path))
    theta = rule.check_theta(theta)
    metadata = {
        **(metadata or {}),
        "format_version": saved_model.FORMAT_VERSION,
        "rule": rules.serialize(rule),
        "versions": _versions(),
    }
    _check_metadata(metadata)
    saved_model.check_rule_size(rule)
    _clear_remains(path)
    _check_destination(path, overwrite)
    try:
        _write_whole(path, rule, theta, metadata, shapes, names)
    except (tf.errors.OpError, OSError) as error:
        raise OSError(f"The export {path!r} cannot be written: {backend.reason(error)}") from error


def _write_whole(path: str, *content: Any) -> None:
    """Writes under a temporary name, which this process holds, and renames."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=name + _TEMPORARY, dir=folder)
    lock = locks.acquire(temporary)
    try:
        _write(temporary, *content)
        # mkdtemp's directory is private; the export gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        _put_in_place(temporary, path)
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def _check_names(names: Any, shapes: Sequence[Shape] | None) -> None:
    are_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not are_names or shapes is None or len(names) != len(shapes):
        raise ValueError(
            "`names` must be a list of strings, one for each of `shapes`. Received: "
            f"names={names!r:.200}, shapes={shapes!r:.200}"
        )


def _checked_shapes(shapes: Any) -> list[Shape]:
    try:
        checked: list[Shape] = [tuple(operator.index(size) for size in shape) for shape in shapes]
    except TypeError:
        checked = []
    if not checked or any(size < 1 for shape in checked for size in shape):
        raise ValueError(
            "`shapes` must be a list of shapes, lists of positive integers, one for each tensor. "
            f"Received: shapes={shapes!r:.200}"
        )
    if sum(map(math.prod, checked)) > _MOST_ENTRIES:
        raise ValueError(
            f"`shapes` must have at most {_MOST_ENTRIES} entries in all. "
            f"Received: shapes={shapes!r:.200}"
        )
    return checked


def _clear_remains(path: str) -> None:
    """Removes what killed processes have left of exports to this path.

    If one was killed between its two renames, the export that was there is put back.
    """
    for remains in glob.glob(f"{glob.escape(path)}{_TEMPORARY}*"):
        try:
            lock = locks.acquire(remains)
        except OSError:  # Of another user.
            continue
        if lock is None:  # Of a process that is at work.
            continue
        try:
            if remains.endswith(_REPLACED) and not os.path.lexists(path):
                os.rename(remains, path)
            else:
                shutil.rmtree(remains, ignore_errors=True)
        finally:
            os.close(lock)


def _put_in_place(temporary: str, path: str) -> None:
    if not os.path.isdir(path):
        os.rename(temporary, path)
        return
    replaced = f"{temporary}{_REPLACED}"
    os.rename(path, replaced)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(replaced, path)
        raise
    shutil.rmtree(replaced)


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Raises unless metadata can be written, and read again."""
    text = json.dumps(metadata, allow_nan=False)
    try:
        # The digests of the files are still missing.
        saved_model.parse_metadata(text.encode() + b" " * (saved_model.LARGEST_METADATA // 2))
    except ValueError as error:
        raise ValueError(f"`metadata` cannot be written: {error}") from error


def _check_destination(path: str, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(f"The export {path!r} exists. Choose another path, or overwrite it.")
    if not os.path.isfile(os.path.join(path, saved_model.METADATA_FILE)) and (
        not os.path.isdir(path) or os.listdir(path)
    ):
        raise FileExistsError(f"{path!r} is not an export, and is left alone.")


def _versions() -> dict[str, str]:
    # Of the modules: TensorFlow goes by several names on the package index.
    return {
        "python": platform.python_version(),
        "lopt_keras": lopt_keras.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _write(
    directory: str,
    rule: UpdateRule,
    theta: Arrays,
    metadata: dict[str, Any],
    shapes: Sequence[Shape] | None,
    names: Sequence[str] | None,
) -> None:
    module = tf.Module()
    module.theta = {name: tf.Variable(value, name=name) for name, value in theta.items()}
    found = signatures.of_ranks(rule, module.theta)
    if shapes is not None:
        found |= signatures.of_model(rule, module.theta, shapes, names)
    with tempfile.TemporaryDirectory() as scratch:
        # Saved as assets, so that the SavedModel itself knows of the files.
        file, arrays = (
            os.path.join(scratch, os.path.basename(name))
            for name in (saved_model.METADATA_FILE, saved_model.THETA_FILE)
        )
        _write_json(file, metadata)
        np.savez(arrays, **theta)  # type: ignore[arg-type]
        module.assets = [tf.saved_model.Asset(name) for name in (file, arrays)]
        tf.saved_model.save(module, directory, signatures=found)
    metadata["files"] = saved_model.file_digests(directory)
    metadata["sha256"] = saved_model.metadata_digest(metadata)
    _write_json(os.path.join(directory, saved_model.METADATA_FILE), metadata)


def _write_json(file: str, content: dict[str, Any]) -> None:
    with open(file, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, sort_keys=True)
        f.write("\n")
