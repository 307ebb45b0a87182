"""A small meta-training, its digest, and the processes that belong to it."""

import hashlib
import pathlib

from meta.training.config import MetaTrainingConfig

SETTING = {
    "task": "quadratic",
    "rule": "mlp",
    "rule_config": {"hidden_size": 4, "hidden_layers": 1},
    "estimator": "pes",
    "num_particles": 32,
    "unroll_length": 20,
    "horizon": 100,
    "checkpoint_every": 20,
}
"""Arguments of `MetaTrainingConfig`."""


def config(out_dir, steps, shards, num_workers, **others):
    """The `MetaTrainingConfig` of a run."""
    numbers = {"num_outer_steps": steps, "num_shards": shards, "num_workers": num_workers}
    return MetaTrainingConfig(out_dir, **{**SETTING, **numbers, **others})


def digest(theta):
    """sha256 of a dict of arrays, hexadecimal."""
    return hashlib.sha256(b"".join(theta[name].tobytes() for name in sorted(theta))).hexdigest()


def lives(pid):
    """Whether a process is there and has not ended, as Linux tells."""
    return _stat(pid)[:1] not in ([], ["Z"])


def descendants(pid):
    """The processes that a process has started, and those that they have: set."""
    numbers = [int(x.name) for x in pathlib.Path("/proc").iterdir() if x.name.isdigit()]
    parents = {child: int(_stat(child)[1]) for child in numbers if lives(child)}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _stat(pid):
    """The fields of a process from its state on; none if it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
