import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import export
from lopt_keras import LearnedOptimizer, rules, saved_model

RULE = rules.MLP(hidden_size=4, hidden_layers=1)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "learned"
    export.save(path, RULE, RULE.init_theta(2), {"seed": 2})
    return path


@pytest.fixture
def damaged(pristine, tmp_path):
    """A copy to damage."""
    return shutil.copytree(pristine, tmp_path / "damaged")


def edit_metadata(path, change, resign=True):
    file = path / saved_model.METADATA_FILE
    metadata = json.loads(file.read_text())
    change(metadata)
    if resign:
        metadata["sha256"] = saved_model.metadata_digest(metadata)
    file.write_text(json.dumps(metadata))


def resign_files(path):
    edit_metadata(path, lambda metadata: metadata.update(files=saved_model.file_digests(path)))


def test_reads_what_was_written(pristine):
    rule, theta, metadata = saved_model.read(pristine)
    assert rule == RULE
    for name, value in RULE.init_theta(2).items():
        np.testing.assert_array_equal(theta[name], value)
    assert metadata["seed"] == 2
    assert metadata["versions"]["tensorflow"] == tf.__version__
    optimizers = [LearnedOptimizer(weights=path, name="x") for path in (pristine, str(pristine))]
    assert optimizers[0].rule == RULE
    assert optimizers[0].get_config() == optimizers[1].get_config()


def test_a_rule_can_be_given_if_theta_fits_it(pristine):
    other = rules.MLP(hidden_size=4, hidden_layers=1, step_mult=0.5)
    assert LearnedOptimizer(weights=pristine, rule=other).rule == other
    with pytest.raises(ValueError, match="theta does not fit FactoredMLP"):
        LearnedOptimizer(weights=pristine, rule="factored_mlp")


def test_reading_never_touches_the_graph(damaged, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the graph was loaded")

    for name in ("load", "load_v2"):
        monkeypatch.setattr(tf.saved_model, name, fail, raising=False)
    monkeypatch.setattr(tf.compat.v1.saved_model, "load", fail)
    monkeypatch.setattr(tf.Graph, "__init__", fail)
    saved_model.read(damaged)


def test_every_truncated_file_is_noticed(pristine, tmp_path):
    files = [*saved_model.file_digests(pristine), saved_model.METADATA_FILE]
    assert len(files) == 6
    for i, name in enumerate(files):
        for size in (0, 0.5):
            path = shutil.copytree(pristine, tmp_path / f"{i}-{size}")
            os.truncate(path / name, int(size * os.path.getsize(path / name)))
            with pytest.raises(ValueError, match=os.path.basename(name)):
                LearnedOptimizer(weights=path)


def test_every_missing_file_is_noticed(pristine, tmp_path):
    files = [*saved_model.file_digests(pristine), saved_model.METADATA_FILE]
    for i, name in enumerate(files):
        path = shutil.copytree(pristine, tmp_path / str(i))
        os.remove(path / name)
        with pytest.raises(ValueError, match=os.path.basename(name)):
            LearnedOptimizer(weights=path)


def test_every_altered_byte_is_noticed(pristine, tmp_path):
    for i, name in enumerate(saved_model.file_digests(pristine)):
        path = shutil.copytree(pristine, tmp_path / str(i))
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{os.path.basename(name)}.*altered"):
            LearnedOptimizer(weights=path)


def set_rule(**config):
    return lambda metadata: metadata["rule"]["config"].update(config)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(format_version=1), "format version 1"),
        (lambda m: m.pop("format_version"), "format version None"),
        (lambda m: m.pop("rule"), "lacks.*rule"),
        (lambda m: m.pop("files"), "lacks.*files"),
        (lambda m: m.update(files=["a"]), "files"),
        (lambda m: m.update(rule="os.system"), "unusable rule"),
        (lambda m: m.update(rule={"class_name": "subprocess>Popen", "config": {}}), "Popen"),
        (lambda m: m.update(rule={"class_name": "MLP", "config": [1]}), "unusable rule"),
        (lambda m: m.update(rule={"class_name": ["MLP"], "config": {}}), "unusable rule"),
        (set_rule(hidden_size=8), "shape"),
        (set_rule(hidden_layers=10**12), "`hidden_layers`"),
        (set_rule(evil=1), "evil"),
    ],
)
def test_tampered_metadata_is_refused_even_with_a_valid_digest(damaged, change, text):
    edit_metadata(damaged, change)
    with pytest.raises(ValueError, match=text):
        LearnedOptimizer(weights=damaged)


def test_altered_metadata_is_noticed(damaged):
    edit_metadata(damaged, set_rule(step_mult=100.0), resign=False)
    with pytest.raises(ValueError, match=r"metadata\.json.*altered"):
        LearnedOptimizer(weights=damaged)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00"])
def test_metadata_that_is_no_json_object(damaged, content):
    (damaged / saved_model.METADATA_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"metadata\.json"):
        LearnedOptimizer(weights=damaged)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"b0": np.array([np.nan] * 4)}, "'b0'.*finite"),
        ({"b0": np.zeros(5)}, "'b0'.*shape"),
        ({"b0": np.array(["a"] * 4)}, "'b0'.*numbers"),
        ({"b0": np.array([print] * 4)}, "allow_pickle"),
        ({"b0": None}, "missing.*b0"),
        ({"b9": np.zeros(4)}, "unexpected.*b9"),
    ],
    ids=str,
)
def test_other_arrays_are_refused(damaged, entries, text):
    theta = {**RULE.init_theta(2), **entries}
    theta = {name: value for name, value in theta.items() if value is not None}
    np.savez(damaged / saved_model.THETA_FILE, **theta)
    resign_files(damaged)
    with pytest.raises(ValueError, match=text):
        LearnedOptimizer(weights=damaged)


def test_a_file_that_holds_no_arrays_is_refused(damaged):
    (damaged / saved_model.THETA_FILE).write_bytes(b"PK\x03\x04 no archive")
    resign_files(damaged)
    with pytest.raises(ValueError, match=r"theta\.npz.*unusable"):
        LearnedOptimizer(weights=damaged)


def test_foreign_directories_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not an export of lopt_keras"):
        LearnedOptimizer(weights=tmp_path)
    module = tf.Module()
    module.v = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "foreign"))
    with pytest.raises(ValueError, match="not an export of lopt_keras"):
        LearnedOptimizer(weights=tmp_path / "foreign")
    with pytest.raises(ValueError, match="neither"):
        LearnedOptimizer(weights=tmp_path / "absent")
