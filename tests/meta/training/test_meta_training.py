"""A meta-training from Python: `MetaTrainingConfig` and `train`, without flags."""

import dataclasses
import json

import numpy as np
import pytest

from lopt_keras import LearnedOptimizer, saved_model
from meta import tasks
from meta.tasks.mixture import Mixture
from meta.training.config import MetaTrainingConfig
from meta.training.run import started, train

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("meta_training")


def make(out_dir, **kwargs):
    arguments = {
        "task": tasks.get("quadratic"),
        "rule": "sgd",
        "num_outer_steps": 4,
        "num_particles": 4,
        "unroll_length": 3,
        "horizon": 6,
        "checkpoint_every": 2,
        **kwargs,
    }
    return MetaTrainingConfig(str(out_dir), **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("runs") / "whole"
    return out_dir, train(make(out_dir))


def test_it_exports_what_it_holds_and_what_it_comes_from(trained):
    out_dir, training = trained
    _, theta, metadata = saved_model.read(out_dir / "export")
    for name, value in training.loop.theta.items():
        np.testing.assert_array_equal(theta[name], value)
    assert metadata["outer_steps"] == training.loop.step == 4
    assert metadata["meta_loss"] == training.loop.smoothed_loss
    assert metadata["task"]["name"] == metadata["flags"]["task"]["name"] == "quadratic"
    assert metadata["flags"]["unroll_length"] == 3
    assert metadata["commits"] == json.loads((out_dir / "run.json").read_text())["commits"]
    assert "out_dir" not in metadata["flags"]
    assert LearnedOptimizer(weights=out_dir / "export").rule == training.rule


def test_it_goes_on_where_it_was_cut_off(trained, tmp_path):
    with started(make(tmp_path)) as training:
        training.loop.run(2)
    with started(make(tmp_path)) as training:
        assert training.loop.step == 2
        training.finish()
    for name, value in trained[1].loop.theta.items():
        np.testing.assert_array_equal(training.loop.theta[name], value)


def test_another_config_is_refused_in_its_directory(trained):
    out_dir, _ = trained
    with pytest.raises(ValueError, match=r"holds a run with --seed=0. Received: --seed=1"):
        train(make(out_dir, seed=1))
    # Where things are, and how often they are kept, makes no other run.
    assert train(make(out_dir, export_dir=str(out_dir / "other"))).loop.step == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_particles": 3}, "`num_particles` must be even"),
        ({"es_stddev": 1e-30}, "`es_stddev` must be positive, and so must be its square"),
        ({"horizon_known": 1.5}, "`horizon_known` must be in"),
        ({"estimator": "nope"}, "`estimator` must be one of"),
        ({"outer_warmup_steps": 4}, "`outer_warmup_steps` must be less than num_outer_steps=4"),
        ({"trained": "("}, "`trained` must be a regular expression"),
        ({"initial_weights": "nope"}, "`initial_weights` must be weights of the rule"),
        ({"num_shards": 0}, "`num_shards` must be in"),
        ({"num_workers": 2}, "`num_workers` must be at most num_shards=1"),
        ({"ray_address": "auto"}, "`ray_address` is for workers"),
        ({"max_staleness": 3}, "`max_staleness` is for workers"),
        ({"tasks": Mixture({"quadratic": 1.0}, 1)}, "`tasks` excludes `task`"),
    ],
)
def test_wrong_arguments_are_named_before_any_work_starts(arguments, text, tmp_path):
    with pytest.raises((TypeError, ValueError), match=text):
        train(make(tmp_path / "x", **arguments))
    assert not (tmp_path / "x").exists()


def test_what_decides_is_what_has_an_effect(tmp_path):
    config = make(tmp_path)
    assert json.loads(json.dumps(config.deciding)) == config.deciding
    # Neither who computes it, nor what was not known when the first runs began.
    assert not {"num_workers", "ray_address", "num_shards", "max_staleness"} & set(config.deciding)
    assert dataclasses.replace(config, num_shards=2).deciding["num_shards"] == 2
    given = dataclasses.replace(config, flags={"x": 1})
    assert given.deciding == {"x": 1}
