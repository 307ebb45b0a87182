import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import app, flags

from export import locks
from export.checkpoint import export_checkpoint
from lopt_keras import LearnedOptimizer, rules, saved_model
from meta import datasets
from meta import train as binary
from meta.training import run_directory
from meta.training.config import MetaTrainingConfig

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("train")

RULE_CONFIG = {"hidden_size": 2, "hidden_layers": 1, "momentum_decays": [0.9], "step_mult": 0.01}
FLAGS = [
    "--task=digits_mlp",
    '--task_config={"hidden_units": [4], "batch_size": 8}',
    "--rule=mlp",
    f"--rule_config={json.dumps(RULE_CONFIG)}",
    "--estimator=pes",
    "--num_outer_steps=400",
    "--unroll_length=5",
    "--horizon=20",
    "--num_particles=8",
    "--es_stddev=0.02",
    "--outer_learning_rate=0.01",
    "--outer_learning_rate_schedule=cosine",
    "--outer_warmup_steps=30",
    "--outer_objective=validation",
    "--seed=3",
    "--checkpoint_every=20",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """With the dataset: a process that prepares one numbers its programs differently."""
    folder = tmp_path_factory.mktemp("data")
    datasets.load("digits", str(folder))
    return folder


def command(out_dir, data_dir, *flags):
    paths = [f"--out_dir={out_dir}", f"--data_dir={data_dir}"]
    return [sys.executable, "-m", "meta.train", *FLAGS, *paths, *flags]


def train(out_dir, data_dir, *flags):
    arguments = command(out_dir, data_dir, *flags)
    return subprocess.run(arguments, capture_output=True, text=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The flag of what the whole run compiles, with which others start sooner."""
    return f"--compilation_cache={tmp_path_factory.mktemp('compiled')}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir, kept):
    out_dir = tmp_path_factory.mktemp("runs") / "whole"
    result = train(out_dir, data_dir, kept)
    assert result.returncode == 0, result.stderr
    return out_dir, result


def test_compiled_programs_are_kept(whole, kept):
    assert os.listdir(kept.partition("=")[2])


def last_checkpoint(out_dir):
    """The outer step from which the run would resume: a checkpoint counts once it is listed."""
    listed = out_dir / "checkpoints" / "checkpoint"
    if not listed.exists():
        return 0
    return int(re.match(r'model_checkpoint_path: "ckpt-(\d+)"', listed.read_text()).group(1))


def kill_after(out_dir, data_dir, kept, step, delay):
    """Starts the run and kills it, `delay` seconds after it has written a checkpoint."""
    process = subprocess.Popen(
        command(out_dir, data_dir, "--nolearning_curve", kept),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while last_checkpoint(out_dir) < step:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return last_checkpoint(out_dir)


def test_a_killed_run_ends_with_the_same_theta_bit_for_bit(whole, tmp_path, data_dir, kept):
    out_dir = tmp_path / "killed"
    # In the middle of its steps, the second time of those of a run that was resumed.
    killed_at = [kill_after(out_dir, data_dir, kept, 20, 0.0)]
    killed_at.append(kill_after(out_dir, data_dir, kept, killed_at[0] + 40, 0.05))
    assert 0 < killed_at[0] < killed_at[1] < 400
    result = train(out_dir, data_dir, "--nolearning_curve", kept)
    assert result.returncode == 0, result.stderr
    assert f"Resuming at outer step {killed_at[1]}" in result.stdout
    _, expected, reference = saved_model.read(whole[0] / "export")
    _, theta, metadata = saved_model.read(out_dir / "export")
    for name in expected:
        np.testing.assert_array_equal(theta[name], expected[name])
    assert metadata["meta_loss"] == reference["meta_loss"]


def test_the_run_leaves_an_export_a_picture_and_summaries(whole):
    out_dir, result = whole
    rule, _, metadata = saved_model.read(out_dir / "export")
    assert rule == rules.get("mlp", **RULE_CONFIG)
    assert metadata["command"].startswith("python -m meta.train --task=digits_mlp")
    assert metadata["outer_steps"] == 400
    assert metadata["seed"] == metadata["flags"]["seed"] == 3
    assert metadata["task"]["config"]["hidden_units"] == [4]
    assert np.isfinite(metadata["meta_loss"])
    assert metadata["seconds"] > 0
    assert LearnedOptimizer(weights=out_dir / "export").rule == rule
    assert (out_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((out_dir / "learning_curve.json").read_text())
    assert summary.pop("made_by")["command"] == metadata["command"]
    assert len(summary) == 4
    assert list((out_dir / "summaries").iterdir())
    assert "meta_loss=" in result.stderr
    for text in ("SavedModel: ", "Picture: ", "learned"):
        assert text in result.stdout


def test_the_outer_learning_rate_warms_up_and_decays():
    def rates(*given):
        flags.FLAGS([*command("x", "y")[2:], *given])
        rate = binary._config().make_learning_rate()
        flags.FLAGS.unparse_flags()
        return rate if isinstance(rate, float) else [float(rate(i)) for i in (0, 15, 30, 215, 400)]

    np.testing.assert_allclose(rates(), [0.0, 0.005, 0.01, 0.005, 0.0], atol=1e-6)
    constant = "--outer_learning_rate_schedule=constant"
    np.testing.assert_allclose(rates(constant), [0.0, 0.005, 0.01, 0.01, 0.01], atol=1e-6)
    assert rates(constant, "--outer_warmup_steps=0") == 0.01
    no_warmup = [0.01 * (1 + np.cos(np.pi * i / 400)) / 2 for i in (0, 15, 30, 215, 400)]
    np.testing.assert_allclose(rates("--outer_warmup_steps=0"), no_warmup, atol=1e-6)


def test_flags_have_the_defaults_of_the_config():
    defaults = MetaTrainingConfig("x")
    flags.FLAGS(["meta.train", "--out_dir=x"])
    found = binary._config()
    flags.FLAGS.unparse_flags()
    ours = ("command", "flags")
    assert dataclasses.replace(found, **dict.fromkeys(ours)) == defaults
    named = {flag.name for flag in binary._own_flags()}
    fields = {field.name for field in dataclasses.fields(MetaTrainingConfig)}
    assert fields - named == set(ours)
    assert named - fields == {"learning_curve", "compilation_cache"}


def test_flags_work_under_their_old_names():
    flags.FLAGS(["meta.train", "--out_dir=x", "--horizon_told=0.5", "--validation_told=0.25"])
    config = binary._config()
    flags.FLAGS.unparse_flags()
    assert (config.horizon_known, config.validation_known) == (0.5, 0.25)
    assert config.deciding["horizon_known"] == 0.5
    assert not set(run_directory.RENAMED) & set(config.deciding)


def refusal(out_dir, data_dir, *given):
    """What the command says, in this process, that will not run with these flags."""
    arguments = command(out_dir, data_dir, *given)[2:]
    try:
        flags.FLAGS(arguments)
        with pytest.raises(app.UsageError) as caught:
            binary.main(arguments[:1])
    finally:
        flags.FLAGS.unparse_flags()
    return str(caught.value)


def train_here(out_dir, data_dir, *given):
    """Runs the command in this process, which spares the start of another."""
    arguments = command(out_dir, data_dir, "--nolearning_curve", *given)[2:]
    try:
        flags.FLAGS(arguments)
        binary.main(arguments[:1])
    finally:
        flags.FLAGS.unparse_flags()


def test_a_run_can_start_from_the_weights_of_another(whole, tmp_path, data_dir):
    out_dir, _ = whole
    start = out_dir / "export"
    names = ("--num_outer_steps=1", "--outer_learning_rate=1e-9", "--outer_warmup_steps=0")
    train_here(tmp_path / "run", data_dir, *names, f"--initial_weights={start}")
    _, expected, metadata = saved_model.read(start)
    _, theta, own = saved_model.read(tmp_path / "run" / "export")
    for name in expected:
        np.testing.assert_allclose(theta[name], expected[name], atol=1e-6)
    assert own["initial_weights_sha256"] == metadata["sha256"]


def test_a_finished_run_is_not_trained_further(whole, data_dir, capsys):
    out_dir, _ = whole
    _, expected, _ = saved_model.read(out_dir / "export")
    train_here(out_dir, data_dir)
    assert "Resuming at outer step 400" in capsys.readouterr().out
    _, theta, _ = saved_model.read(out_dir / "export")
    for name in expected:
        np.testing.assert_array_equal(theta[name], expected[name])


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--seed=4", "--seed=3. Received: --seed=4"),
        ("--es_stddev=0.1", "--es_stddev=0.02. Received: --es_stddev=0.1"),
    ],
)
def test_a_run_with_other_flags_is_refused(whole, data_dir, flag, text):
    out_dir, _ = whole
    before = {f: os.path.getmtime(f) for f in out_dir.rglob("*") if f.is_file()}
    assert text in refusal(out_dir, data_dir, flag)
    assert {f: os.path.getmtime(f) for f in out_dir.rglob("*") if f.is_file()} == before


def test_the_export_of_another_run_is_never_replaced(whole, tmp_path, data_dir):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    shutil.copytree(foreign, tmp_path / "mine" / "export")
    assert "not an export" in refusal(tmp_path / "mine", data_dir)
    assert os.listdir(tmp_path / "mine") == ["export"]
    for export_dir, text in ((whole[0] / "export", "another run"), (foreign, "not an export")):
        paths = [f"--export_dir={export_dir}", "--seed=4"]
        assert text in refusal(tmp_path / "out", data_dir, *paths)
    assert not (tmp_path / "out").exists()


def test_the_export_binary_writes_the_same(whole, tmp_path):
    out_dir, _ = whole
    _, expected, _ = saved_model.read(out_dir / "export")

    paths = [f"--checkpoint_dir={out_dir / 'checkpoints'}", f"--out={tmp_path / 'export'}"]
    arguments = [sys.executable, "-m", "export.export", *paths]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    _, theta, _ = saved_model.read(tmp_path / "export")
    for name in expected:
        np.testing.assert_array_equal(theta[name], expected[name])
    with pytest.raises(FileExistsError, match="exists"):
        export_checkpoint(str(out_dir), str(tmp_path / "export"), overwrite=False)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--task=nope", "task"),
        ("--rule=nope", "'nope'"),
        ("--rule_config={", "rule_config"),
        ('--rule_config={"hidden_size": 0}', "`hidden_size`"),
        ('--task_config={"nope": 0}', "nope"),
        ("--estimator=nope", "estimator"),
        ("--num_outer_steps=0", "num_outer_steps"),
        ("--num_particles=7", "num_particles"),
        ("--horizon=12", "horizon"),
        ("--es_stddev=0", "es_stddev"),
        ("--es_stddev=1e300", "es_stddev"),
        ("--es_stddev=1e-30", "es_stddev"),
        ("--es_stddev=nan", "es_stddev"),
        ("--outer_learning_rate=inf", "outer_learning_rate"),
        ("--outer_gradient_clip=inf", "outer_gradient_clip"),
        ("--horizon_known=nan", "horizon_known"),
        ("--validation_known=nan", "validation_known"),
        ("--outer_tail=nan", "outer_tail"),
        ("--seed=4294967296", "seed"),
        ("--num_particles=1000000000000", "num_particles"),
        ("--num_outer_steps=10000000000", "num_outer_steps"),
        ("--horizon=100000000000", "horizon"),
        ('--task_config={"hidden_units": [9000000]}', "need at least .* GiB"),
        ('--task_config={"hidden_units": [1000000000000]}', "hidden_units.*at most"),
        ('--task_config={"hidden_units": [4], "batch_size": 1000000000000}', "batch_size.*at most"),
        ('--task_config={"hidden_units": 1e400}', "task_config|hidden_units"),
        ('--task_config={"hidden_units": "many"}', "hidden_units"),
        ('--rule_config={"hidden_size": 4096, "hidden_layers": 16}', "theta of a rule"),
        ("--tasks=quadratic", "`tasks` excludes `task`"),
        ("--tasks=nope", "tasks=nope"),
        ("--export_dir=/dev/null/x", "--export_dir.*cannot be a directory"),
        ("--data_dir=/dev/null", "--data_dir.*cannot be a directory"),
        ("--compilation_cache=/dev/null", "--compilation_cache.*cannot be a directory"),
        ("--out_dir=/dev/null/x", "--out_dir.*cannot be a directory"),
        ("--outer_learning_rate=-1", "outer_learning_rate"),
        ("--outer_optimizer=nope", "outer_optimizer"),
        ("--outer_gradient_norm_clip=0", "outer_gradient_norm_clip"),
        ("--outer_learning_rate_schedule=nope", "outer_learning_rate_schedule"),
        ("--outer_warmup_steps=400", "outer_warmup_steps"),
        ("--curriculum=nope", "curriculum"),
        ("--curriculum=linear", "shortest_problem=None"),
        ("--shortest_problem=5", "shortest_problem=5"),
        ("--curriculum_steps=5", "curriculum_steps=5"),
        ("--segment_length=3", "segment_length"),
        ("--outer_objective=test", "outer_objective"),
        ("--dataset=no_such_dataset", "no_such_dataset"),
        ("--initial_weights=nope", "initial_weights.*nope"),
        ("--initial_weights=default", "(?s)initial_weights.*default.*does not fit"),
    ],
)
def test_wrong_flags_are_named_before_any_work_starts(tmp_path, data_dir, flag, text):
    arguments = command(tmp_path / "out", data_dir, flag)[2:]

    def main():
        flags.FLAGS(arguments)
        binary.main(arguments[:1])

    with pytest.raises((app.UsageError, flags.Error), match=text):
        main()
    flags.FLAGS.unparse_flags()
    assert not (tmp_path / "out").exists()


def test_an_export_directory_that_holds_the_run_is_refused(tmp_path, data_dir):
    flag = f"--export_dir={tmp_path / 'out'}"
    assert "must not hold --out_dir" in refusal(tmp_path / "out" / "run", data_dir, flag)
    assert not (tmp_path / "out").exists()


def test_a_second_run_in_the_directory_of_one_at_work_is_refused(tmp_path, data_dir, monkeypatch):
    with run_directory.lock(tmp_path / "out"):
        # In this process there is but one lock.
        monkeypatch.setattr(locks, "acquire", lambda *args: None)
        told = refusal(tmp_path / "out", data_dir)
    assert f"in use by process {os.getpid()} on" in told


def test_a_damaged_run_says_what_it_does(whole, tmp_path, data_dir, kept):
    out_dir = tmp_path / "damaged"
    shutil.copytree(whole[0], out_dir)
    os.truncate(out_dir / "checkpoints" / "ckpt-400.data-00000-of-00001", 100)
    os.remove(out_dir / "checkpoints" / "checkpoint")
    result = train(out_dir, data_dir, "--nolearning_curve", kept)
    assert result.returncode == 0, result.stderr
    assert "Warning: ckpt-400 cannot be read: " in result.stderr
    assert "Resuming at outer step 380." in result.stdout
    _, expected, _ = saved_model.read(whole[0] / "export")
    _, theta, _ = saved_model.read(out_dir / "export")
    for name in expected:
        np.testing.assert_array_equal(theta[name], expected[name])
    (out_dir / "run.json").write_text("{")
    told = refusal(out_dir, data_dir)
    assert told.startswith("The description of the run, ")
    assert "\n" not in told
