"""From a meta-training run's checkpoint to an export."""

import json
import os

import tensorflow as tf

from export import saved_model
from lopt_keras import rules

_RUN_FILE = "run.json"
_CHECKPOINTS = "checkpoints"
_THETA, _VALUE = "theta/", "/.ATTRIBUTES/VARIABLE_VALUE"


def export_checkpoint(checkpoint_dir, out, overwrite=False):
    """Exports the latest checkpoint of a run.

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
    if os.path.basename(directory) == _CHECKPOINTS:
        directory = os.path.dirname(directory)
    try:
        with open(os.path.join(directory, _RUN_FILE), encoding="utf-8") as f:
            run = json.load(f)
    except (OSError, ValueError) as error:
        raise ValueError(f"`checkpoint_dir` holds no meta-training run: {error}") from error
    latest = tf.train.latest_checkpoint(os.path.join(directory, _CHECKPOINTS))
    if latest is None:
        raise ValueError(f"There is no checkpoint yet in {directory!r}.")
    metadata = {name: value for name, value in run.items() if name != "rule"}
    metadata |= {
        "outer_steps": int(_read_scalar(latest, "step")),
        "meta_loss": float(_read_scalar(latest, "smoothed_loss")),
        "seconds": float(_read_scalar(latest, "seconds")),
    }
    saved_model.save(out, rules.get(run["rule"]), _read_theta(latest), metadata, overwrite)


def _read_theta(checkpoint):
    reader = tf.train.load_checkpoint(checkpoint)
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(_THETA)]
    return {
        name.removeprefix(_THETA).removesuffix(_VALUE): reader.get_tensor(name) for name in names
    }


def _read_scalar(checkpoint, name):
    return tf.train.load_variable(checkpoint, name + _VALUE)
