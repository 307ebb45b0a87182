"""Writing a learned optimizer as a SavedModel, all or nothing."""

import glob
import json
import os
import platform
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

import lopt_keras
from export import backend, locks
from lopt_keras import rules, saved_model
from lopt_keras.rules.base import Signals, State

RANKS = range(6)
"""The ranks of tensors for which an export has signatures."""

_STATE, _SHARED = "state_", "shared_"
_TEMPORARY, _REPLACED = ".tmp-", ".replaced"


def save(path, rule, theta, metadata=None, overwrite=False):
    """Writes a SavedModel directory that `LearnedOptimizer(weights=path)` reads.

    Its variables are theta. Its signatures run the rule without any Python of
    ours, on one tensor of rank r and any shape, for each r in `RANKS`:

    - `init_state_rank_r(parameter)` gives `state_*`, before the first step;
    - `update_rank_r(parameter, gradient, state_*, step)` gives the new
      `parameter` and `state_*`; `step` counts from 0, an int32 scalar.

    A rule with state that belongs to no tensor gives and takes `shared_*` too, the
    same for all tensors of a step. One that hears losses or the horizon takes
    them as float32 scalars, `train_loss`, `validation_loss`, `total_steps`: NaN
    where they are not known. A rule that mixes or fuses tensors has no signatures, as its
    step is not that of one tensor; one whose update depends on the order of the
    axes, and that does not take all tensors as matrices, has them for ranks up to 2.

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

    Raises:
        FileExistsError: if `path` exists and is not to be overwritten, or is no export.
        TypeError, ValueError: if theta does not fit the rule, or the metadata is no JSON.
    """
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
        _write_whole(path, rule, theta, metadata)
    except (tf.errors.OpError, OSError) as error:
        raise OSError(f"The export {path!r} cannot be written: {backend.reason(error)}") from error


def _write_whole(path, rule, theta, metadata):
    """Writes under a temporary name, which this process holds, and renames."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=name + _TEMPORARY, dir=folder)
    lock = locks.acquire(temporary)
    try:
        _write(temporary, rule, theta, metadata)
        # mkdtemp's directory is private; the export gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        _put_in_place(temporary, path)
    finally:
        os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_remains(path):
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


def _put_in_place(temporary, path):
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


def _check_metadata(metadata):
    """Raises unless metadata can be written, and read again."""
    text = json.dumps(metadata, allow_nan=False)
    try:
        # The digests of the files are still missing.
        saved_model.parse_metadata(text.encode() + b" " * (saved_model.LARGEST_METADATA // 2))
    except ValueError as error:
        raise ValueError(f"`metadata` cannot be written: {error}") from error


def _check_destination(path, overwrite):
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(f"The export {path!r} exists. Choose another path, or overwrite it.")
    if not os.path.isfile(os.path.join(path, saved_model.METADATA_FILE)) and (
        not os.path.isdir(path) or os.listdir(path)
    ):
        raise FileExistsError(f"{path!r} is not an export, and is left alone.")


def _versions():
    # Of the modules: TensorFlow goes by several names on the package index.
    return {
        "python": platform.python_version(),
        "lopt_keras": lopt_keras.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _write(directory, rule, theta, metadata):
    module = tf.Module()
    module.theta = {name: tf.Variable(value, name=name) for name, value in theta.items()}
    signatures = {}
    for rank in _exported_ranks(rule):
        signatures |= _signatures(rule, module.theta, rank)
    with tempfile.TemporaryDirectory() as scratch:
        # Saved as assets, so that the SavedModel itself knows of the files.
        file, arrays = (
            os.path.join(scratch, os.path.basename(name))
            for name in (saved_model.METADATA_FILE, saved_model.THETA_FILE)
        )
        _write_json(file, metadata)
        np.savez(arrays, **theta)
        module.assets = [tf.saved_model.Asset(name) for name in (file, arrays)]
        tf.saved_model.save(module, directory, signatures=signatures)
    metadata["files"] = saved_model.file_digests(directory)
    metadata["sha256"] = saved_model.metadata_digest(metadata)
    _write_json(os.path.join(directory, saved_model.METADATA_FILE), metadata)


def _write_json(file, content):
    with open(file, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, sort_keys=True)
        f.write("\n")


def _exported_ranks(rule):
    if rule.mixes_tensors or rule.fuses_tensors:
        return ()
    if not rule.state_follows_axes:
        return range(2)
    return RANKS if rule.permutes_with_axes or rule.flattens else range(3)


def _signatures(rule, theta, exported_rank):
    """The two concrete functions for tensors of one rank."""
    tensor = tf.TensorSpec([None] * exported_rank, tf.float32)
    rank = min(exported_rank, 2) if rule.flattens else exported_rank
    sorted_shapes, shared_shapes = _state_shapes(rule, theta, rank)
    # Which axes of a state are of size 1 depends on sizes not known here.
    specs = {
        _STATE + name: tf.TensorSpec([*shape[: len(shape) - rank], *[None] * rank], tf.float32)
        for name, shape in sorted_shapes.items()
    }
    specs |= {_SHARED + k: tf.TensorSpec(shape, tf.float32) for k, shape in shared_shapes.items()}
    specs |= {name: tf.TensorSpec([], tf.float32) for name in rule.signals}

    def named(state, inverse):
        (tensor_state,), shared = state
        return {
            **{_STATE + name: _permute(x[0], inverse) for name, x in tensor_state.items()},
            **{_SHARED + name: x[0] for name, x in shared.items()},
        }

    @tf.function(autograph=False)
    def init_state(parameter):
        parameter = _as_rank(parameter, rank)
        order, inverse = _orders(parameter)
        return named(rule.init_state(_single(theta), [_permute(parameter, order)[None]]), inverse)

    @tf.function(autograph=False)
    def update(parameter, gradient, step, **others):
        shape = tf.shape(parameter)
        parameter, gradient = _as_rank(parameter, rank), _as_rank(gradient, rank)
        order, inverse = _orders(parameter)
        tensor_state = {
            name: tf.ensure_shape(_permute(others[_STATE + name], order), sizes)[None]
            for name, sizes in sorted_shapes.items()
        }
        shared = {name: others[_SHARED + name][None] for name in shared_shapes}
        (change,), state = rule.update(
            _single(theta),
            State([tensor_state], shared),
            [_permute(gradient, order)[None]],
            [_permute(parameter, order)[None]],
            Signals.silent(step[None], **{name: others[name][None] for name in rule.signals}),
        )
        parameter = tf.reshape(parameter + _permute(change[0], inverse), shape)
        return {"parameter": parameter, **named(state, inverse)}

    return {
        f"init_state_rank_{exported_rank}": init_state.get_concrete_function(parameter=tensor),
        f"update_rank_{exported_rank}": update.get_concrete_function(
            parameter=tensor, gradient=tensor, step=tf.TensorSpec([], tf.int32), **specs
        ),
    }


def _as_rank(x, rank):
    """A tensor of that rank: where it is less, a matrix of all axes but the last by the last."""
    if x.shape.rank == rank:
        return x
    return tf.reshape(x, [-1, tf.shape(x)[-1]])


def _single(theta):
    """Theta as one particle."""
    return {name: value[None] for name, value in theta.items()}


def _state_shapes(rule, theta, rank):
    """The static shapes of the states of a tensor with sorted dimensions of open size.

    Returns:
        A dict for the tensor's own state, and one for the shared state.
    """
    sizes = range(2, rank + 2)
    (example,), shared = rule.init_state(_single(theta), [tf.zeros([1, *sizes])])
    tensor = {
        name: [
            size if i < len(value.shape) - 1 - rank or size == 1 else None
            for i, size in enumerate(value.shape[1:])
        ]
        for name, value in example.items()
    }
    return tensor, {name: value.shape[1:] for name, value in shared.items()}


def _orders(parameter):
    """The permutation that sorts the dimensions by size, and its inverse.

    A rule chooses axes by size when it is traced, and the sizes of a signature are
    not known then. It is therefore given tensors with sorted dimensions.
    """
    order = tf.argsort(tf.shape(parameter), stable=True)
    return order, tf.argsort(order)


def _permute(x, order):
    """`x [*features, *shape]` with the dimensions of `shape` permuted."""
    leading = x.shape.rank - order.shape[0]
    return tf.transpose(x, tf.concat([tf.range(leading), order + leading], axis=0))
