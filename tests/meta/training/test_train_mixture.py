"""`python -m meta.train --tasks=...`, from the flags to the export."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import app, flags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lopt_keras import LearnedOptimizer, saved_model
from meta import train as binary

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("train_mixture")

# Without a dataset: a process that prepares one numbers its programs differently.
MIXTURE = {"families": {"quadratic": 2, "analytic_continuation": 1}, "num_tasks": 3}
FLAGS = [
    f"--tasks={json.dumps(MIXTURE)}",
    '--augmentation={"reparameterisation": "task", "loss_scale": [0.1, 10]}',
    "--rule=sgd",
    "--rule_config={}",
    "--estimator=pes",
    "--num_outer_steps=24",
    "--unroll_length=5",
    "--horizon=20",
    "--num_particles=8",
    "--checkpoint_every=8",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def train(out_dir, cache, *flags):
    paths = [f"--out_dir={out_dir}", f"--compilation_cache={cache}"]
    command = [sys.executable, "-m", "meta.train", *FLAGS, *paths, *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    out_dir = tmp_path_factory.mktemp("runs") / "whole"
    result = train(out_dir, cache)
    assert result.returncode == 0, result.stderr
    return out_dir


def test_a_mixture_leaves_an_export_and_summaries_by_family(whole):
    _, theta, metadata = saved_model.read(whole / "export")
    defaults = {"milliseconds": None, "score": "loss", "large": None}
    assert metadata["tasks"] == {**MIXTURE, **defaults}
    assert metadata["outer_steps"] == 24
    assert all(np.isfinite(value).all() for value in theta.values())
    LearnedOptimizer(weights=whole / "export")
    events = EventAccumulator(str(whole / "summaries"), {"tensors": 0}).Reload()
    assert {f"{name}/meta_loss" for name in MIXTURE["families"]} <= set(events.Tags()["tensors"])


def test_a_resumed_mixture_ends_with_the_same_theta_and_compiles_nothing(whole, cache, tmp_path):
    out_dir = tmp_path / "resumed"
    shutil.copytree(whole, out_dir)
    shutil.rmtree(out_dir / "export")
    listed = out_dir / "checkpoints" / "checkpoint"
    listed.write_text(re.sub("ckpt-(16|24)", "ckpt-8", listed.read_text()))
    known = set(os.listdir(cache))
    result = train(out_dir, cache)
    assert result.returncode == 0, result.stderr
    assert "Resuming at outer step 8." in result.stdout
    assert set(os.listdir(cache)) == known
    _, expected, _ = saved_model.read(whole / "export")
    _, theta, _ = saved_model.read(out_dir / "export")
    for name in expected:
        np.testing.assert_array_equal(theta[name], expected[name])


@pytest.mark.parametrize("tasks", ["nope", '{"families": {"nope": 1}}', '{"num_tasks": 0}'])
def test_what_is_no_mixture_is_refused(tasks, tmp_path):
    try:
        flags.FLAGS(["meta.train", *FLAGS, f"--out_dir={tmp_path / 'x'}", f"--tasks={tasks}"])
        with pytest.raises(app.UsageError, match="num_tasks"):
            binary.main(["meta.train"])
    finally:
        flags.FLAGS.unparse_flags()
    assert not (tmp_path / "x").exists()
