"""Every benchmark still starts, builds what it builds, and has a smoke mode that runs to its end.

What they find is not looked at: that takes the sizes at which they are run. Programs whose smoke
mode takes longer run with `-m slow_benchmarks` only.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from meta.evaluation import benchmark, learning_rates

ROOT = pathlib.Path(__file__).parent.parent.parent / "benchmarks"
SCRIPTS = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py"))
PROGRAMS = [s for s in SCRIPTS if '__name__ == "__main__"' in (ROOT / s).read_text("utf-8")]


def make_workloads(module, folder):
    for name, workload in {**module.WORKLOADS, **module.SMALLER}.items():
        own = workload(str(folder))
        first = keras.tree.map_structure(lambda array: array[:1], own.train[0])
        assert own.make()(first).shape[0] == 1, name


def make_contenders(module, folder):
    for name in (*module.BASELINES, *module.RULES):
        module.make(name).build([keras.Variable([[1.0, 2.0]])])


def make_variables(module, folder):
    for name in ("mlp", "transformer"):
        variables, gradients = module.variables(module.SHAPES[name]()[:4])
        assert len(variables) == len(gradients) == 4


def summarise_populations(module, folder):
    rng, seeds = np.random.default_rng(0), ("0", "1")

    def curves(columns, offset=0.0):
        falling = np.linspace(0.0, -2.0, 10)[:, None] + rng.uniform(0.0, 0.1, (10, columns))
        return {seed: (falling + offset).tolist() for seed in seeds}

    arms = {arm: curves(10, i) for i, arm in enumerate(module._ARMS)}
    rates = {str(rate): -1.0 + (rate - 1.0) ** 2 for rate in module._RATES_OF_ADAM}
    found = {
        "trainings": {**arms, module.ADAM: curves(9)},
        "as optimizers": {
            "quadratics": {s: {"self-trained": [-1.5], "Adam": rates} for s in seeds}
        },
        "fresh": {module._TRAINED_BY_SELF: curves(10), module._TRAINED_BY_ADAM: curves(9)},
    }
    summary = module.summarise(found)
    assert summary[module.SELF]["steps to tuned Adam as inner optimizer"] == [120, 120]
    assert summary["goals"]["tuned Adam as inner optimizer"] == -1.0
    module.plot(found, folder / "population.png")
    assert (folder / "population.png").exists()


def measure_once(module, folder):
    times = module.interleaved({"nothing": lambda: None}, repetitions=3)
    module.write(str(folder / "figures.json"), times)
    assert "tensorflow" in (folder / "figures.json").read_text()


def check_gradients(module, folder):
    whole, truncated = module.exact_gradients(1, np.log(0.01))
    assert np.isfinite([whole, truncated]).all()


def fit_once(module, folder):
    """On a problem of a few rows, by the smallest of the grids."""
    x = np.linspace(-1.0, 1.0, 8, dtype="float32")[:, None]
    split = {"train": (x, 2 * x), "validation": (x, 2 * x), "test": (x, 2 * x)}

    def make():
        return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])

    workload = types.SimpleNamespace(make=make, loss="mse", batch_size=4, **split)
    runs = module.compare({"SGD": lambda: keras.optimizers.SGD(0.1)}, workload, 2, num_seeds=2)
    (summary,) = module.summarise(runs).values()
    assert summary["validation"]["mean"] < 4.0 / 3
    assert len(runs["SGD"][0]["epoch_seconds"]) == 2
    found = module.best_rate(lambda rate: {"validation": [np.nan, abs(rate - 0.01)]})
    assert found == 0.01
    module.train = lambda *_: {"validation": [1.0]}
    with contextlib.redirect_stderr(io.StringIO()) as terminal:
        module.adams(workload, 2)
    assert "tuning Adam" in terminal.getvalue()  # It takes long: a bar shows that it goes on.


def model_drivers(module, _):
    """Whose speeds are known: nothing costs anything, or the driver does all of it."""
    free = module.FREE

    def speed(engine, *seconds, **kwargs):
        load = module.Load(np.array(seconds), 1, 0, 1000, **kwargs)
        return module.steps_per_second(engine, load, num_steps=100)[0]

    one_slow = [5.0, *[0.5] * 7]
    np.testing.assert_allclose(speed(free, *[0.5] * 8), 2.0)
    np.testing.assert_allclose(speed(free, *one_slow), 0.2)
    # Each step takes eight estimates, of whatever workers: 7 / 0.5 s + 1 / 5 s of them arrive.
    np.testing.assert_allclose(speed(free, *one_slow, waits=False), 14.2 / 8, rtol=0.02)
    driver = dataclasses.replace(free, submit=0.1, collect=0.2, apply=0.3)
    np.testing.assert_allclose(speed(driver, *[1e-6] * 8), 1 / (8 * 0.3 + 0.3), rtol=0.01)
    network = dataclasses.replace(free, per_byte=1e-3)
    np.testing.assert_allclose(speed(network, *[0.5] * 8), 1 / (0.5 + 8 * 1.0), rtol=0.01)
    states = {"state_bytes": 4000, "state_every": 2}  # Each second step brings them.
    np.testing.assert_allclose(speed(network, *[0.5] * 8, **states), 1 / (8.5 + 16), rtol=0.01)
    # Eight leaders get theta in turn, need 2.4 s for eight workers, and give what they have.
    workers = dataclasses.replace(driver, apply=0.0), module.Load(np.full(64, 1e-6), 1, 0, 0)
    tree = module.steps_per_second_of_a_tree(*workers, 8)
    np.testing.assert_allclose(tree, 1 / (0.1 + 2.4 + 8 * 0.2), rtol=0.01)


def plan_with_earlier_rates(module, folder):
    """The rates that are committed serve all parts in which Adam is tuned, and are not mixed up."""
    for name, part in module.PARTS.items():
        entries, settings = module.plan(name)
        if part.settings.get("num_rates") == 1:
            assert settings.rates_from is None
        else:
            assert settings.num_rates == 1
            assert f"/{name}/" in settings.rates_from
            rates = learning_rates.read(settings.rates_from)
            assert {entry.config.key for entry in entries} <= set(rates)
    flags.FLAGS.earlier = str(folder)
    with pytest.raises(ValueError, match="`--rates_from` must be the results.json"):
        module.plan("evaluation_told")
    flags.FLAGS.earlier = ""
    assert module.plan("evaluation_told")[1] == benchmark.Settings(wall_clock=False)


def bin_late_curves(module, _):
    """Of a run that goes on from outer step 1,000."""
    figures = module.binned({"often": np.array([np.arange(1001, 1041), np.arange(40.0)])})
    np.testing.assert_allclose(figures["outer_steps"], np.arange(1002, 1041, 2))
    np.testing.assert_allclose(figures["meta_loss"]["often"], np.arange(0.5, 40, 2))


BUILDS = {
    "default/measure.py": plan_with_earlier_rates,
    "distributed/model.py": model_drivers,
    "fitting.py": fit_once,
    "gradients/truncation_bias.py": check_gradients,
    "headline.py": lambda module, _: module.build_model(
        {"filters": [2], "strides": [1]}, (8, 8, 1), 3
    ),
    "meta_curves.py": bin_late_curves,
    "model_zoo.py": make_workloads,
    "performance/contenders.py": make_contenders,
    "performance/models.py": make_variables,
    "performance/stopwatch.py": measure_once,
    "population.py": summarise_populations,
}
"""What builds models, tasks or trainings, and can do so in seconds."""


@pytest.fixture
def load(monkeypatch):
    """A function that imports a script as Python runs it: beside its siblings, with own flags."""
    known_flags, known_modules = set(flags.FLAGS), set(sys.modules)

    def load(script):
        file = ROOT / script
        monkeypatch.syspath_prepend(str(file.parent))
        monkeypatch.syspath_prepend(str(ROOT))
        name = "benchmark_" + script.removesuffix(".py").replace("/", "_")
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(flags.FLAGS) - known_flags:
        delattr(flags.FLAGS, name)
    siblings = {pathlib.PurePath(script).stem for script in SCRIPTS}
    for name in (set(sys.modules) - known_modules) & siblings:
        del sys.modules[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_imported(script, load):
    module = load(script)
    assert callable(getattr(module, "main", None)) == (script in PROGRAMS)
    assert ("smoke" in flags.FLAGS) == (script in PROGRAMS)


@pytest.mark.parametrize("script", BUILDS)
def test_a_script_builds_what_it_builds(script, load, tmp_path):
    module = load(script)
    flags.FLAGS.unparse_flags()
    names = [name for name in ("out_dir", "data_dir", "run_dir", "runs_dir") if name in flags.FLAGS]
    flags.FLAGS([script, *(f"--{name}={tmp_path}" for name in names)])
    BUILDS[script](module, tmp_path)


def weights_to_analyse(folder):
    own = ROOT / "results" / "analysis" / "quadratic" / "weights"
    shutil.copytree(own, folder / "quadratic" / "weights")
    return []


def a_run(folder):
    """The summaries of a meta-training on one family of tasks."""
    with tf.summary.create_file_writer(str(folder / "run" / "summaries")).as_default():
        for step in (1, 2):
            tf.summary.scalar("quadratic/meta_loss", 1.0 / step, step=step)
    return [f"--run_dir={folder / 'run'}"]


def pairs_of_samples(folder):
    """What `unroll_length.py` writes."""
    rng = np.random.default_rng(0)
    pairs, scores = rng.normal(size=(2, 10, 8, 3))
    np.savez(folder / "pairs.npz", lengths=[5], pairs_5=pairs, scores_5=scores)
    return [f"--samples={folder / 'pairs.npz'}"]


INPUTS = {
    "analysis.py": weights_to_analyse,
    "gradients/merge_weights.py": pairs_of_samples,
    "gradients/unroll_length.py": lambda folder: [f"--samples={folder / 'pairs.npz'}"],
    "meta_curves.py": a_run,
    "tasks/generalisation.py": lambda folder: [f"--runs_dir={folder / 'runs'}"],
}
"""What a program needs besides its flag `--smoke`: from a folder to more flags."""

QUICK = {
    "gradients/merge_weights.py",
    "meta_curves.py",
    "rules_table.py",
}
"""The programs whose smoke mode takes less than five seconds, and no process of its own."""


def smoke_argv(script, folder):
    argv = [script, "--smoke", *INPUTS.get(script, lambda _: [])(folder)]
    return argv if script == "rules_table.py" else [*argv, f"--out_dir={folder}"]


def check_results(script, folder):
    """They are there, and say what made them. One program only prints."""
    found = [json.loads(file.read_bytes()) for file in folder.rglob("*.json")]
    made_by = [x["made_by"] for x in found if isinstance(x, dict) and "made_by" in x]
    assert bool(made_by) == (script != "rules_table.py")
    assert all(set(x) == {"command", "commit", "versions"} for x in made_by)
    assert all(file.read_bytes()[1:4] == b"PNG" for file in folder.rglob("*.png"))


@pytest.mark.parametrize("script", sorted(QUICK))
def test_the_smoke_mode_runs_to_its_end(script, load, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # `--smoke` adds to it.
    module = load(script)
    argv = smoke_argv(script, tmp_path)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(argv)
    module.main([script])
    check_results(script, tmp_path)


@pytest.mark.slow_benchmarks
@pytest.mark.parametrize("script", sorted({*PROGRAMS} - QUICK))
def test_the_smoke_mode_of_a_slower_program_runs_to_its_end(script, tmp_path):
    command, *argv = smoke_argv(script, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    subprocess.run([sys.executable, str(ROOT / command), *argv], env=environment, check=True)
    check_results(script, tmp_path)
