import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import Quadratic, small_mlp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lopt_keras import LearnedOptimizer, rules
from meta import estimators
from meta.outer_loop import OuterLoop

RULE = rules.SGD(learning_rate=0.01, momentum=0.5)


def make_loop(out_dir, name="es", optimizer=None, task=None, seed=0, **kwargs):
    arguments = {"num_particles": 8, "unroll_length": 4, "stddev": 0.1}
    if name == "pes":
        arguments["horizon"] = 12
    estimator = estimators.get(name, RULE, task or small_mlp(), **arguments)
    optimizer = optimizer or keras.optimizers.Adam(0.05)
    return OuterLoop(estimator, optimizer, seed, str(out_dir), checkpoint_every=3, **kwargs)


def assert_equal(first, second):
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_it_finds_a_better_learning_rate(tmp_path):
    loop = make_loop(tmp_path, task=Quadratic())
    start = loop.theta["log_learning_rate"]
    loop.run(1)
    first = loop.smoothed_loss
    loop.run(60)
    assert loop.theta["log_learning_rate"] > start + 1.0
    assert loop.smoothed_loss < 0.8 * first


@pytest.mark.parametrize("name", estimators.NAMES)
def test_a_resumed_run_ends_with_the_same_theta_bit_for_bit(tmp_path, name):
    whole = make_loop(tmp_path / "whole", name)
    whole.run(10)
    interrupted = make_loop(tmp_path / "interrupted", name)
    interrupted.run(6)
    resumed = make_loop(tmp_path / "interrupted", name)
    assert resumed.restore() == 6
    resumed.run(10)
    assert_equal(whole.theta, resumed.theta)
    assert whole.smoothed_loss == resumed.smoothed_loss
    # And the seed matters.
    other = make_loop(tmp_path / "other", name, seed=1)
    other.run(10)
    assert (other.theta["log_learning_rate"] != whole.theta["log_learning_rate"]).any()


def test_a_checkpoint_between_two_is_redone(tmp_path):
    loop = make_loop(tmp_path / "x")
    loop.run(7)  # Checkpoints at 3, 6 and 7.
    resumed = make_loop(tmp_path / "x")
    assert resumed.restore() == 7
    tf.io.gfile.remove(str(tmp_path / "x" / "checkpoints" / "ckpt-7.index"))
    manager = tmp_path / "x" / "checkpoints" / "checkpoint"
    manager.write_text(manager.read_text().replace("ckpt-7", "ckpt-6", 1))
    again = make_loop(tmp_path / "x")
    assert again.restore() == 6
    again.run(7)
    assert_equal(loop.theta, again.theta)


def test_nothing_to_restore_starts_at_zero(tmp_path):
    assert make_loop(tmp_path).restore() == 0


def test_summaries(tmp_path):
    make_loop(tmp_path).run(20)
    events = EventAccumulator(str(tmp_path / "summaries"))
    events.Reload()
    names = {
        "meta_loss",
        "meta_loss_smoothed",
        "gradient_norm",
        "diverged",
        "inner_step_size",
        "outer_step_size",
    }
    assert set(events.Tags()["tensors"]) == names
    for name in names:
        points = events.Tensors(name)
        assert [point.step for point in points] == [10, 20]
        values = [tf.make_ndarray(point.tensor_proto) for point in points]
        assert np.isfinite(values).all()
        assert name == "diverged" or (np.array(values) > 0).all()


def test_the_meta_gradient_is_clipped(tmp_path):
    loop = make_loop(tmp_path, optimizer=keras.optimizers.SGD(1.0), gradient_clip=1e-4)
    before = loop.theta
    loop.run(1)
    for name in before:
        step = np.abs(loop.theta[name] - before[name])
        assert 0 < step <= 1.01e-4


def test_a_learned_optimizer_can_be_the_outer_optimizer(tmp_path):
    rule = rules.MLP(hidden_size=2, hidden_layers=1, step_mult=0.1)
    learned = LearnedOptimizer(weights=rule.init_theta(1), rule=rule)
    loop = make_loop(tmp_path, optimizer=learned)
    before = loop.theta
    loop.run(3)
    assert all(np.isfinite(value).all() for value in loop.theta.values())
    assert any((loop.theta[name] != before[name]).any() for name in before)
