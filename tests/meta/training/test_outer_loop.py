import functools
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import Noise, Quadratic, small_mlp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lopt_keras import LearnedOptimizer, rules
from meta import estimators
from meta.training import outer_state, shards
from meta.training.crew import LocalCrew
from meta.training.curriculum import Curriculum
from meta.training.outer_loop import OuterLoop
from meta.training.worker import Worker

# One process compiles what they share.
pytestmark = pytest.mark.xdist_group("outer_loop")

RULE = rules.SGD(learning_rate=0.01, momentum=0.5)
QUADRATIC, STEEP, NOISE, MLP = Quadratic(), Quadratic(), Noise(), small_mlp()
STEEP.curvature = 3.0


@functools.cache
def make_estimator(name, task, horizon=4, num_particles=8, unroll_length=4):
    return estimators.get(
        name,
        RULE,
        task,
        num_particles=num_particles,
        unroll_length=unroll_length,
        stddev=0.1,
        horizon=horizon,
    )


@functools.cache
def make_worker(estimators, curriculum, seed):
    """A worker has no state but its programs, so that loops with the same ones share it.

    That a process which compiles anew ends with the same bits is tested where the command is.
    """
    return Worker(estimators, curriculum, seed)


def make_loop(
    out_dir,
    name="es",
    optimizer=None,
    task=MLP,
    seed=0,
    horizon=4,
    curriculum=None,
    **kwargs,
):
    curriculum = curriculum or Curriculum("constant", horizon)
    estimator = make_estimator(name, task, horizon)
    kwargs.setdefault("crew", LocalCrew(make_worker((estimator,), curriculum, seed)))
    return OuterLoop(
        estimator,
        optimizer or keras.optimizers.Adam(0.05),
        seed,
        str(out_dir),
        checkpoint_every=3,
        curriculum=curriculum,
        **kwargs,
    )


def assert_equal(first, second):
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_it_finds_a_better_learning_rate(tmp_path):
    loop = make_loop(tmp_path, task=QUADRATIC)
    start = loop.theta["log_learning_rate"]
    loop.run(1)
    first = loop.smoothed_loss
    loop.run(60)
    assert loop.theta["log_learning_rate"] > start + 1.0
    assert loop.smoothed_loss < 0.8 * first


# Two that keep a state between steps, and the one that is made of the two others.
@pytest.mark.parametrize("name", ["pes", "nres", "merged"])
def test_a_resumed_run_ends_with_the_same_theta_bit_for_bit(tmp_path, name):
    def make(folder, **kwargs):
        rate = keras.optimizers.schedules.CosineDecay(0.0, 8, warmup_target=0.05, warmup_steps=2)
        optimizer = keras.optimizers.Adam(rate)
        curriculum = Curriculum("log_uniform", 12, 4)
        folder = tmp_path / folder
        return make_loop(
            folder, name, optimizer, QUADRATIC, horizon=12, curriculum=curriculum, **kwargs
        )

    whole = make("whole")
    whole.run(10)
    interrupted = make("interrupted")
    interrupted.run(6)
    resumed = make("interrupted")
    assert resumed.restore() == 6
    resumed.run(10)
    assert_equal(whole.theta, resumed.theta)
    assert whole.smoothed_loss == resumed.smoothed_loss
    # And the seed matters.
    other = make("other", seed=1)
    other.run(10)
    assert (other.theta["log_learning_rate"] != whole.theta["log_learning_rate"]).any()


def test_a_damaged_checkpoint_is_redone(tmp_path):
    loop = make_loop(tmp_path / "x")
    loop.run(7)  # Checkpoints at 3, 6 and 7.
    assert make_loop(tmp_path / "x").restore() == 7
    folder = tmp_path / "x" / "checkpoints"
    os.truncate(folder / "ckpt-7.data-00000-of-00001", 10)
    os.remove(folder / "checkpoint")
    again = make_loop(tmp_path / "x")
    with pytest.warns(UserWarning, match="ckpt-7 cannot be read"):
        assert again.restore() == 6
    # A directory can be moved, whatever it is called.
    assert str(tmp_path) not in (folder / "checkpoint").read_text()
    again.run(7)
    assert_equal(loop.theta, again.theta)
    # Old ones are still swept away.
    again.run(9)
    assert sorted(file.stem for file in folder.glob("*.index")) == ["ckpt-6", "ckpt-7", "ckpt-9"]


def test_a_run_never_starts_over_where_there_are_checkpoints(tmp_path):
    loop = make_loop(tmp_path)
    loop.run(3)
    again = make_loop(tmp_path)
    again.run(4)  # Without having been told to restore.
    loop.run(4)
    assert_equal(loop.theta, again.theta)
    for file in (tmp_path / "checkpoints").glob("*.index"):
        os.truncate(file, 0)
    with pytest.raises(ValueError, match="No checkpoint in .* is whole"):
        make_loop(tmp_path).run(4)


def test_a_checkpoint_of_another_loop_is_refused(tmp_path):
    make_loop(tmp_path, optimizer=keras.optimizers.SGD(0.1)).run(3)
    with pytest.raises(ValueError, match="ckpt-3' is not one of this meta-training"):
        make_loop(tmp_path).restore()


def test_what_cannot_be_written_is_said_with_what_is_kept(tmp_path, monkeypatch):
    loop = make_loop(tmp_path)
    loop.run(3)

    def fail(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.CheckpointManager, "save", fail)
    text = "(?s)checkpoint of outer step 6 cannot be written to .*No space left.*ckpt-3'"
    with pytest.raises(OSError, match=text):
        loop.run(6)


def test_the_bar_tells_of_compilation(tmp_path, capsys):
    make_loop(tmp_path, task=QUADRATIC, crew=None).run(20)
    told = capsys.readouterr().err
    assert "0/20 [00:00, compiling program 1 of 1, " in told
    assert "20/20" in told
    assert "meta_loss=" in told


def test_nothing_to_restore_starts_at_zero(tmp_path):
    assert make_loop(tmp_path).restore() == 0


def summaries(out_dir):
    """Dict from name to `(steps, values)`."""
    events = EventAccumulator(str(out_dir / "summaries"))
    events.Reload()
    points = {name: events.Tensors(name) for name in events.Tags()["tensors"]}
    return {
        name: ([p.step for p in ps], np.array([tf.make_ndarray(p.tensor_proto) for p in ps]))
        for name, ps in points.items()
    }


@pytest.mark.parametrize("name", ["nres", "merged"])
def test_summaries(tmp_path, name):
    make_loop(tmp_path, name, task=QUADRATIC).run(20)
    names = {
        "meta_loss",
        "meta_loss_smoothed",
        "gradient_norm",
        "diverged",
        "inner_step_size",
        "outer_step_size",
        "unroll_length",
        "seconds",
        "compile_seconds",
    }
    counts = {"excluded", "es_weight"} if name == "merged" else set()
    found = summaries(tmp_path)
    assert set(found) == names | counts
    for key, (steps, values) in found.items():
        assert steps == [10, 20]
        assert np.isfinite(values).all()
        assert key in ("diverged", "excluded", "seconds") or (values > 0).all()
    assert found["unroll_length"][1].tolist() == [4, 4]


def test_the_curriculum_decides_how_long_problems_are(tmp_path):
    curriculum = Curriculum("linear", 4, 1, num_steps=30)
    make_loop(tmp_path, task=QUADRATIC, curriculum=curriculum).run(30)
    found = summaries(tmp_path)
    # The summary of outer step k is of the length for which k - 1 steps had been taken.
    assert found["unroll_length"][1].tolist() == [2, 3, 4]
    losses = found["meta_loss"][1]
    assert losses[0] > losses[1] > losses[2]


def test_a_curriculum_beyond_the_horizon_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`curriculum`.*horizon=4.*longest=5"):
        make_loop(tmp_path, curriculum=Curriculum("constant", 5))


def test_the_meta_gradient_is_clipped(tmp_path):
    loop = make_loop(tmp_path, optimizer=keras.optimizers.SGD(1.0), gradient_clip=1e-4)
    before = loop.theta
    loop.run(1)
    for name in before:
        step = np.abs(loop.theta[name] - before[name])
        assert 0 < step <= 1.01e-4


def test_the_norm_of_the_meta_gradient_is_clipped_and_its_direction_kept(tmp_path):
    def step(folder, **kwargs):
        optimizer = keras.optimizers.SGD(1.0)
        arguments = {"optimizer": optimizer, "task": QUADRATIC, "gradient_clip": 1e6, **kwargs}
        loop = make_loop(tmp_path / folder, **arguments)
        before = loop.theta
        loop.run(1)
        return np.array([loop.theta[name] - before[name] for name in sorted(before)])

    whole, clipped = step("whole"), step("clipped", gradient_norm_clip=1e-3)
    np.testing.assert_allclose(np.linalg.norm(clipped), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(clipped, whole * 1e-3 / np.linalg.norm(whole), rtol=1e-2)
    np.testing.assert_array_equal(step("loose", gradient_norm_clip=1e3), whole)


def test_a_learned_optimizer_can_be_the_outer_optimizer(tmp_path):
    rule = rules.MLP(hidden_size=2, hidden_layers=1, step_mult=0.1)
    learned = LearnedOptimizer(weights=rule.init_theta(1), rule=rule)
    loop = make_loop(tmp_path, optimizer=learned)
    before = loop.theta
    loop.run(3)
    assert all(np.isfinite(value).all() for value in loop.theta.values())
    assert any((loop.theta[name] != before[name]).any() for name in before)


@pytest.mark.parametrize("name", ["es", "merged"])
def test_a_part_of_theta_is_trained(tmp_path, name):
    arguments = {"num_particles": 8, "unroll_length": 4, "trained": ["log_learning_rate"]}
    estimator = estimators.get(name, RULE, QUADRATIC, **arguments)
    loop = OuterLoop(estimator, keras.optimizers.Adam(0.05), 0, str(tmp_path))
    start = loop.theta
    loop.run(3)
    assert loop.theta["log_learning_rate"] != start["log_learning_rate"]
    assert loop.theta["log_one_minus_momentum"] == start["log_one_minus_momentum"]


def make_mixture(out_dir, weights, seed=0, **kwargs):
    sizes = {"num_particles": 4, "unroll_length": 2}
    tasks = {"quadratic/0": QUADRATIC, "quadratic/1": STEEP, "noise/0": NOISE}
    made = {name: make_estimator("pes", task, **sizes) for name, task in tasks.items()}
    curriculum = Curriculum("constant", 4)
    worker = make_worker(tuple(made.values()), curriculum, seed)
    return OuterLoop(
        {name: (estimator, weights[name]) for name, estimator in made.items()},
        keras.optimizers.Adam(0.05),
        seed,
        str(out_dir),
        checkpoint_every=3,
        curriculum=curriculum,
        crew=LocalCrew(worker),
        **kwargs,
    )


def test_a_mixture_takes_its_steps_in_proportion_and_resumes(tmp_path):
    weights = {"quadratic/0": 6, "quadratic/1": 3, "noise/0": 1}
    make_worker.cache_clear()
    whole = make_mixture(tmp_path / "whole", weights)
    taken = []
    units = whole._units
    whole._units = lambda: [taken.append(unit.program) or unit for unit in units()]
    whole.run(60)
    fractions = np.bincount(taken, minlength=3) / 60
    np.testing.assert_allclose(fractions, [0.6, 0.3, 0.1], atol=0.15)
    interrupted = make_mixture(tmp_path / "interrupted", weights)
    interrupted.run(31)
    resumed = make_mixture(tmp_path / "interrupted", weights)
    assert resumed.restore() == 31
    resumed.run(60)
    assert_equal(whole.theta, resumed.theta)
    found = summaries(tmp_path / "whole")
    assert {"quadratic/meta_loss", "noise/meta_loss", "meta_loss_smoothed"} <= set(found)
    # What is compiled in the first steps is not counted among the seconds of the others.
    assert 0 < whole.seconds < whole.compile_seconds


def test_it_goes_on_from_the_small_state_of_another_run(tmp_path):
    first = make_loop(tmp_path / "first", task=QUADRATIC)
    first.run(6)
    thetas = []
    for name in ("second", "third"):
        loop = make_loop(tmp_path / name, task=QUADRATIC)
        loop.go_on_from(str(tmp_path / "first" / outer_state.FILE))
        assert (loop.step, loop.smoothed_loss) == (6, first.smoothed_loss)
        assert_equal(loop.theta, first.theta)
        loop.run(9)
        thetas.append(loop.theta)
    assert_equal(*thetas)
    assert (thetas[0]["log_learning_rate"] != first.theta["log_learning_rate"]).any()


def test_it_refuses_the_state_of_another_optimizer(tmp_path):
    make_loop(tmp_path / "first", task=QUADRATIC).run(3)
    loop = make_loop(tmp_path / "second", optimizer=keras.optimizers.SGD(), task=QUADRATIC)
    with pytest.raises(ValueError, match="outer optimizer"):
        loop.go_on_from(str(tmp_path / "first" / outer_state.FILE))


def test_shards_take_their_steps_together_and_resume(tmp_path):
    weights = {"quadratic/0": 6, "quadratic/1": 3, "noise/0": 1}
    whole = make_mixture(tmp_path / "whole", weights, num_shards=3)
    whole.run(20)
    interrupted = make_mixture(tmp_path / "interrupted", weights, num_shards=3)
    interrupted.run(11)
    resumed = make_mixture(tmp_path / "interrupted", weights, num_shards=3)
    assert resumed.restore() == 11
    resumed.run(20)
    assert_equal(whole.theta, resumed.theta)
    found = summaries(tmp_path / "whole")
    assert {f"shards/{i}/meta_loss" for i in range(3)} <= set(found)
    one = make_mixture(tmp_path / "one", weights)
    one.run(20)
    assert one.theta["log_learning_rate"] != whole.theta["log_learning_rate"]


def test_an_interruption_leaves_a_checkpoint(tmp_path, monkeypatch):
    """In the middle of an outer step, which is then taken again."""
    whole = make_loop(tmp_path / "whole", "pes", task=QUADRATIC, horizon=12, num_shards=2)
    whole.run(6)
    loop = make_loop(tmp_path / "x", "pes", task=QUADRATIC, horizon=12, num_shards=2)
    average = shards.average
    # Under a shell that has put the tests in the background, interruptions are ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(gradients):
        if loop.step == 4:
            signal.raise_signal(signal.SIGINT)
        return average(gradients)

    monkeypatch.setattr(shards, "average", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(6)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    resumed = make_loop(tmp_path / "x", "pes", task=QUADRATIC, horizon=12, num_shards=2)
    assert resumed.restore() == 4
    resumed.run(6)
    assert_equal(whole.theta, resumed.theta)
