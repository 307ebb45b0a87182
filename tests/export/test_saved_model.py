import importlib.metadata
import json
import os
import signal
import stat
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import export
from export import locks
from export import saved_model as writer
from lopt_keras import LearnedOptimizer, rules, saved_model

RULE = rules.FactoredMLP(hidden_size=4, step_mult=0.1, exp_mult=0.1)
SHAPES = [(), (5,), (4, 6), (6, 4), (5, 5), (7, 1), (2, 5, 3), (3, 3, 2, 4), (2, 1, 3, 2, 4)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "learned"
    export.save(path, RULE, RULE.init_theta(2))
    return path


@pytest.fixture(scope="module")
def signatures(path):
    return tf.saved_model.load(str(path)).signatures


def random(rng, shape):
    return np.asarray(rng.standard_normal(shape), "float32")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signatures_do_what_the_optimizer_does(path, signatures, shape):
    rng = np.random.RandomState(0)
    rank = len(shape)
    variable = keras.Variable(random(rng, shape))
    optimizer = LearnedOptimizer(weights=path, jit_compile=False)
    optimizer.build([variable])
    parameter = tf.constant(variable.numpy())
    state = signatures[f"init_state_rank_{rank}"](parameter=parameter)
    assert {k.removeprefix("state_"): tuple(v.shape) for k, v in state.items()} == {
        k: tuple(v.shape) for k, v in optimizer._state.tensors[0].items()
    }
    for i in range(3):
        gradient = tf.constant(random(rng, shape))
        optimizer.apply([gradient], [variable])
        outputs = signatures[f"update_rank_{rank}"](
            parameter=parameter, gradient=gradient, step=tf.constant(i), **state
        )
        parameter = outputs["parameter"]
        state = {name: value for name, value in outputs.items() if name != "parameter"}
        np.testing.assert_allclose(parameter, variable.numpy(), rtol=1e-5, atol=1e-6)


SCHEDULED = rules.Scheduled(
    rules.NormalizedMLP(hidden_size=2, hidden_layers=1, step_mult=0.1), hidden_size=2
)


def test_signatures_of_a_rule_that_hears(tmp_path):
    theta = {
        name: 0.3 * np.random.RandomState(i).standard_normal(shape).astype("float32")
        for i, (name, shape) in enumerate(SCHEDULED.theta_shapes().items())
    }
    export.save(tmp_path / "x", SCHEDULED, theta)
    signatures = tf.saved_model.load(str(tmp_path / "x")).signatures
    # The update of a normalised rule depends on the order of more than two axes.
    assert {name[-1] for name in signatures} == {"0", "1", "2"}
    optimizer = LearnedOptimizer(weights=tmp_path / "x", jit_compile=False, total_steps=3)
    rng = np.random.RandomState(0)
    variable = keras.Variable(random(rng, (6, 4)))
    parameter = tf.constant(variable.numpy())
    state = signatures["init_state_rank_2"](parameter=parameter)
    assert {name.split("_")[0] for name in state} == {"state", "shared"}
    for i in range(3):
        gradient = tf.constant(random(rng, (6, 4)))
        optimizer.observe(train_loss=1.0 / (i + 1))
        optimizer.apply([gradient], [variable])
        outputs = signatures["update_rank_2"](
            parameter=parameter,
            gradient=gradient,
            step=tf.constant(i),
            train_loss=tf.constant(1.0 / (i + 1)),
            validation_loss=tf.constant(np.nan),
            total_steps=tf.constant(3.0),
            **state,
        )
        parameter = outputs["parameter"]
        state = {name: value for name, value in outputs.items() if name != "parameter"}
        np.testing.assert_allclose(parameter, variable.numpy(), rtol=1e-5, atol=1e-6)


def test_signatures_of_a_rule_that_flattens_filters(tmp_path):
    rule = rules.NormalizedMLP(
        hidden_size=4, step_mult=0.1, orthogonalize=False, flatten_filters=True, start="adam"
    )
    export.save(tmp_path / "x", rule, rule.init_theta(1))
    signatures = tf.saved_model.load(str(tmp_path / "x")).signatures
    optimizer = LearnedOptimizer(weights=tmp_path / "x", jit_compile=False)
    rng = np.random.RandomState(0)
    variable = keras.Variable(random(rng, (3, 2, 4, 5)))
    parameter = tf.constant(variable.numpy())
    state = signatures["init_state_rank_4"](parameter=parameter)
    for i in range(2):
        gradient = tf.constant(random(rng, (3, 2, 4, 5)))
        optimizer.apply([gradient], [variable])
        outputs = signatures["update_rank_4"](
            parameter=parameter, gradient=gradient, step=tf.constant(i), **state
        )
        parameter = outputs["parameter"]
        state = {name: value for name, value in outputs.items() if name != "parameter"}
        np.testing.assert_allclose(parameter, variable.numpy(), rtol=1e-5, atol=1e-6)


MODEL = [(4, 6), (6,), (), (3, 3, 2, 4), (5, 8)]
NAMES = ["dense/kernel", "dense/bias", "scale", "conv/kernel", "Embedding/table"]


@pytest.mark.parametrize("weights", ["default", "mixing", "plain"])
def test_signatures_of_a_model_do_what_the_optimizer_does(tmp_path, weights):
    if weights != "default":
        rule = {"mixing": rules.Hierarchical(hidden_size=4, lstm_size=4), "plain": RULE}[weights]
        export.save(tmp_path / "weights", rule, rule.init_theta(3))
        weights = tmp_path / "weights"
    export.export_weights(weights, tmp_path / "x", MODEL, names=NAMES)
    signatures = tf.saved_model.load(str(tmp_path / "x")).signatures
    optimizer = LearnedOptimizer(weights=weights, jit_compile=False, total_steps=10)
    signals = {name: tf.constant(np.nan) for name in optimizer.rule.signals}
    signals |= {"total_steps": tf.constant(10.0)} if "total_steps" in signals else {}
    rng = np.random.RandomState(0)
    variables = [
        keras.Variable(random(rng, shape), name=name.replace("/", "_"))
        for name, shape in zip(NAMES, MODEL, strict=True)
    ]
    optimizer.build(variables)
    parameters = {f"parameter_{i}": tf.constant(v.numpy()) for i, v in enumerate(variables)}
    state = signatures["init_state"](**parameters)
    for step in range(3):
        gradients = [tf.constant(random(rng, shape)) for shape in MODEL]
        optimizer.apply(gradients, variables)
        given = {f"gradient_{i}": g for i, g in enumerate(gradients)}
        outputs = signatures["update"](
            step=tf.constant(step), **parameters, **given, **state, **signals
        )
        parameters = {name: outputs[name] for name in parameters}
        state = {name: outputs[name] for name in state}
        for parameter, variable in zip(parameters.values(), variables, strict=True):
            np.testing.assert_allclose(parameter, variable.numpy(), rtol=1e-4, atol=1e-5)
    for unusable in (np.nan, 1e20):
        broken = {**given, "gradient_1": tf.fill(MODEL[1], np.float32(unusable))}
        outputs = signatures["update"](
            step=tf.constant(3), **parameters, **broken, **state, **signals
        )
        for name, value in {**parameters, **state}.items():
            np.testing.assert_array_equal(outputs[name], value)
    averages = [state[f"average_{i}"] for i in range(len(MODEL)) if optimizer.rule.averages]
    optimizer.finalize_variable_values(variables)
    for average, variable in zip(averages, variables, strict=False):
        np.testing.assert_allclose(average, variable.numpy(), rtol=1e-4, atol=1e-5)
    assert bool(averages) == (weights == "default")
    metadata = saved_model.read_metadata(tmp_path / "x")
    assert metadata["weights_sha256"] != metadata["sha256"]


@pytest.mark.parametrize("shapes", [3, [], [[0]], [[2.5]], [["a"]], [[-1, 3]], ["ab"]])
def test_shapes_that_are_none_are_refused(tmp_path, shapes):
    with pytest.raises(ValueError, match="`shapes` must be a list of shapes"):
        export.save(tmp_path / "x", RULE, RULE.init_theta(2), shapes=shapes)
    with pytest.raises(ValueError, match="`shapes` must have at most"):
        export.save(tmp_path / "x", RULE, RULE.init_theta(2), shapes=[[2**20, 2**12]])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("names", ["abcde", ["a"], [1] * 5, 3])
def test_names_that_are_none_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match="`names` must be a list of strings"):
        export.save(tmp_path / "x", RULE, RULE.init_theta(2), shapes=MODEL, names=names)
    with pytest.raises(ValueError, match="`names` must be .*shapes=None"):
        export.save(tmp_path / "x", RULE, RULE.init_theta(2), names=NAMES)
    with pytest.raises(TypeError, match="`shapes` must be a list.*None"):
        export.export_weights("default", tmp_path / "x", None)
    assert not os.listdir(tmp_path)


def test_a_rule_that_mixes_tensors_has_no_signatures_but_can_be_read(tmp_path):
    rule = rules.Hierarchical(hidden_size=2, lstm_size=2)
    export.save(tmp_path / "x", rule, rule.init_theta())
    assert not tf.saved_model.load(str(tmp_path / "x")).signatures
    assert LearnedOptimizer(weights=tmp_path / "x").rule == rule


def saved_model_cli(*arguments):
    script = os.path.join(os.path.dirname(sys.executable), "saved_model_cli")
    result = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_saved_model_cli_shows_the_names(path):
    shown = saved_model_cli("show", "--dir", str(path), "--all")
    for rank in export.signatures.RANKS:
        assert f"init_state_rank_{rank}" in shown
        assert f"update_rank_{rank}" in shown
    for name in ("parameter", "gradient", "step", "state_m", "state_rms", "state_row", "state_v"):
        assert f"['{name}']" in shown


def test_saved_model_cli_runs_an_update(path, tmp_path):
    rng = np.random.RandomState(0)
    parameter, gradient = random(rng, (4, 6)), random(rng, (4, 6))
    variable = keras.Variable(parameter)
    LearnedOptimizer(weights=path).apply([tf.constant(gradient)], [variable])

    def run(signature, **inputs):
        for name, value in inputs.items():
            np.save(tmp_path / f"{name}.npy", value)
        pairs = ";".join(f"{name}={tmp_path / name}.npy" for name in inputs)
        common = ["run", "--dir", str(path), "--tag_set", "serve", "--signature_def", signature]
        saved_model_cli(*common, "--inputs", pairs, "--outdir", str(tmp_path), "--overwrite")
        return {file.stem: np.load(file) for file in tmp_path.glob("*.npy")}

    state = run("init_state_rank_2", parameter=parameter)
    state = {name: value for name, value in state.items() if name.startswith("state_")}
    assert set(state) == {"state_m", "state_rms", "state_row", "state_col"}
    step = np.int32(0)
    outputs = run("update_rank_2", parameter=parameter, gradient=gradient, step=step, **state)
    np.testing.assert_allclose(outputs["parameter"], variable.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(outputs["parameter"] - parameter).max() > 0


def test_loads_without_the_research_code(path):
    code = (
        "import sys, keras\n"
        "from lopt_keras import LearnedOptimizer\n"
        f"optimizer = LearnedOptimizer(weights={str(path)!r})\n"
        "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "model.compile(optimizer, 'mse')\n"
        "model.fit(keras.ops.ones((4, 2)), keras.ops.ones((4, 1)), verbose=0)\n"
        "print([m for m in ('meta', 'export', 'tensorflow_datasets') if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip().endswith("[]"), result.stderr


def test_the_metadata_names_no_path_of_this_machine(path):
    content = b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())
    for trace in (os.getcwd(), str(path), os.path.expanduser("~") + os.sep):
        assert trace.encode() not in content


def test_an_existing_export_is_replaced_only_on_demand(tmp_path):
    rule = rules.SGD()
    export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 1})
    with pytest.raises(FileExistsError, match="exists"):
        export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 2})
    assert saved_model.read_metadata(tmp_path / "x")["try"] == 1
    export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 2}, overwrite=True)
    assert saved_model.read_metadata(tmp_path / "x")["try"] == 2
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) & 0o500 == 0o500


def test_something_else_is_never_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("precious")
    rule = rules.SGD()
    with pytest.raises(FileExistsError, match="not an export"):
        export.save(tmp_path / "x", rule, rule.init_theta(), overwrite=True)
    assert os.listdir(tmp_path / "x") == ["thesis.tex"]


@pytest.mark.parametrize("victim", ["save", "metadata_digest", "rename"])
def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch, victim):
    rule = rules.SGD()
    export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 1})

    def fail(*args, **kwargs):
        raise OSError("disk full")

    module = {"save": tf.saved_model, "metadata_digest": saved_model, "rename": os}[victim]
    with monkeypatch.context() as patch:
        patch.setattr(module, victim, fail)
        with pytest.raises(OSError, match="disk full"):
            export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 2}, overwrite=True)
    assert os.listdir(tmp_path) == ["x"]
    assert saved_model.read_metadata(tmp_path / "x")["try"] == 1


def start_and_kill(path, where):
    """A process that exports to a path, killed at a function."""
    code = (
        "import os, signal, sys\nimport tensorflow as tf\nimport export\n"
        "from lopt_keras import rules\n"
        "calls = []\n"
        f"module, name, number = {where}\n"
        "original = getattr(module, name)\n"
        "def kill(*arguments, **kwargs):\n"
        "    calls.append(arguments)\n"
        "    if len(calls) == number:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*arguments, **kwargs)\n"
        "setattr(module, name, kill)\n"
        "rule = rules.SGD()\n"
        f"export.save({str(path)!r}, rule, rule.init_theta(), {{'try': 2}}, overwrite=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize("where", ["(tf.saved_model, 'save', 1)", "(os, 'rename', 2)"])
def test_the_next_export_clears_what_a_killed_one_has_left(tmp_path, where):
    rule = rules.SGD()
    # Of another path, and of another process at work.
    (tmp_path / "y.tmp-abc").mkdir()
    (tmp_path / "x.tmp-abc").mkdir()
    at_work = locks.acquire(tmp_path / "x.tmp-abc")
    export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 1})
    start_and_kill(tmp_path / "x", where)
    assert len(os.listdir(tmp_path)) >= 4
    with pytest.raises(FileExistsError):  # Between two renames, too: what was there is back.
        export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 3})
    assert saved_model.read_metadata(tmp_path / "x")["try"] == 1
    export.save(tmp_path / "x", rule, rule.init_theta(), {"try": 3}, overwrite=True)
    assert saved_model.read_metadata(tmp_path / "x")["try"] == 3
    assert sorted(os.listdir(tmp_path)) == ["x", "x.tmp-abc", "y.tmp-abc"]
    os.close(at_work)


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore")

    rule = rules.SGD()
    with monkeypatch.context() as patch:
        patch.setattr(tf.saved_model, "save", fail)
        with pytest.raises(OSError, match="x' cannot be written: No space left on device$"):
            export.save(tmp_path / "x", rule, rule.init_theta())
    assert not os.listdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/x' cannot be written: .*file'$"):
        export.save(tmp_path / "file" / "x", rule, rule.init_theta())


def test_versions_are_those_of_the_modules(path, monkeypatch):
    """TensorFlow goes by several names on the package index, tensorflow-cpu and others."""

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    assert saved_model.read_metadata(path)["versions"] == writer._versions()
    assert writer._versions()["tensorflow"] == tf.__version__


def test_metadata_that_could_not_be_read_again_is_not_written(tmp_path):
    rule, deep = rules.SGD(), {}
    for _ in range(100):
        deep = {"deeper": deep}
    for metadata in (deep, {"a": "x" * saved_model.LARGEST_METADATA}):
        with pytest.raises(ValueError, match="`metadata` cannot be written"):
            export.save(tmp_path / "x", rule, rule.init_theta(), metadata)
    assert not os.listdir(tmp_path)


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    rule = rules.SGD()
    with pytest.raises(ValueError, match="missing"):
        export.save(tmp_path / "x", rule, {})
    with pytest.raises(TypeError, match="JSON"):
        export.save(tmp_path / "x", rule, rule.init_theta(), {"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        export.save(tmp_path / "x", rule, rule.init_theta(), {"a": float("nan")})
    assert not os.listdir(tmp_path)


def test_metadata_and_theta_are_assets_of_the_saved_model(path):
    loaded = tf.saved_model.load(str(path))
    metadata, theta = (asset.asset_path.numpy().decode() for asset in loaded.assets)
    with open(metadata, encoding="utf-8") as f:
        assert json.load(f)["rule"] == rules.serialize(RULE)
    with np.load(theta) as arrays:
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, loaded.theta[name].numpy())
