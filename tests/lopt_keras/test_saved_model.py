import io
import json
import os
import shutil
import time
import tracemalloc
import zipfile

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


def archive(entries, compression=zipfile.ZIP_STORED):
    """An npz of pairs of a name and the bytes of its `.npy`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as content:
        for name, data in entries:
            content.writestr(f"{name}.npy", data)
    return file.getvalue()


def array_of(shape, dtype="<f4", data=b""):
    """The bytes of a `.npy` whose header claims a shape."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


NAMES = list(RULE.theta_shapes())
BOMBS = {
    "an absurd shape": archive([(name, array_of((10**6, 10**6))) for name in NAMES]),
    "an absurd type": archive([(name, array_of((1,), "|V2000000000")) for name in NAMES]),
    "compressed zeros": archive(
        [(name, array_of((5 * 10**7,), data=bytes(2 * 10**8))) for name in NAMES[:1]],
        zipfile.ZIP_DEFLATED,
    ),
    "many entries": archive([(f"x{i}", array_of((1,))) for i in range(20_000)]),
    "a large file": archive([(NAMES[0], array_of((10**7,), data=bytes(4 * 10**7)))]),
    "a deep header": archive([(NAMES[0], b"\x93NUMPY\x01\x00\xf0\x22" + b"(" * 0x22F0)]),
}
METADATA = {
    "deep": b"[" * 130_000,
    "deep and closed": b'{"rule":' * 100 + b"1" + b"}" * 100,
    "deep in values": b'{"a": "\\"[", "b":' + b"[" * 65 + b"]" * 65 + b"}",
    "huge": b'{"a": "' + b"x" * 10**8 + b'"}',
    "wide": b"[" + b"[]," * 43_000 + b"[]]",
    "wide inside": b'{"format_version": 2, "rule": 1, "files": {}, "sha256": "", "a": ['
    + b"{}," * 43_000
    + b"[]]}",
    "long numbers": b"[" + b"9" * 120_000 + b"]",
}


def assert_refused_at_once(path, text):
    """By processor time, as the machine may have other work, and by what Python and NumPy hold."""
    start = time.process_time()
    with pytest.raises(ValueError, match=text):
        saved_model.read(path)
    assert time.process_time() - start < 0.1
    tracemalloc.start()
    with pytest.raises(ValueError, match=text):
        saved_model.read(path)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("name", BOMBS)
def test_absurd_arrays_are_refused_before_anything_is_allocated(damaged, name):
    (damaged / saved_model.THETA_FILE).write_bytes(BOMBS[name])
    resign_files(damaged)
    assert_refused_at_once(damaged, r"theta\.npz.*unusable")


@pytest.mark.parametrize("name", METADATA)
def test_absurd_metadata_is_refused_at_once(damaged, name):
    (damaged / saved_model.METADATA_FILE).write_bytes(METADATA[name])
    assert_refused_at_once(damaged, r"metadata\.json")


def test_an_absurd_rule_is_refused_at_once(damaged):
    edit_metadata(damaged, set_rule(hidden_size=4096, hidden_layers=8))
    assert_refused_at_once(damaged, "theta of a rule must have at most")


def test_an_absurd_file_is_refused_at_once(damaged):
    resign_files(damaged)
    with open(damaged / "saved_model.pb", "r+b") as f:
        f.truncate(10**12)  # Of holes.
    assert_refused_at_once(damaged, "saved_model.pb")


@pytest.mark.parametrize("name", ["/proc/kcore", "../secret", "assets/../../secret"])
def test_files_outside_of_the_export_are_not_read(damaged, name):
    (damaged.parent / "secret").write_text("secret")
    edit_metadata(damaged, lambda metadata: metadata["files"].update({name: "0"}))
    assert_refused_at_once(damaged, "outside")


def test_the_arrays_must_be_among_the_files_with_a_digest(damaged):
    edit_metadata(damaged, lambda metadata: metadata["files"].pop("assets/theta.npz"))
    assert_refused_at_once(damaged, "lists no.*theta.npz")


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
