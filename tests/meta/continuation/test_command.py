import csv
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from meta.continuation import evaluation, kernels, measurement, saving, solving
from meta.continuation.measurement import Measurement
from meta.continuation.solver import UnrolledSolver


@pytest.fixture(scope="module")
def solver():
    keras.utils.set_random_seed(3)
    solver = UnrolledSolver(32, 2, 4)
    solver.build(None)
    return solver


@pytest.fixture(scope="module")
def weights(solver, tmp_path_factory):
    file = str(tmp_path_factory.mktemp("weights") / "solver.npz")
    saving.save(file, solver, {"command": "none"})
    return file


def measured(kernel="fermionic", noise=1e-3, num_times=40, beta=10.0):
    """A measurement of two peaks."""
    times = np.linspace(0.0, beta, num_times)
    edges = kernels.edges(kernel, 256, 8.0)
    omega = 0.5 * (edges[1:] + edges[:-1])
    spectrum = np.exp(-0.5 * (omega - 2.0) ** 2) + np.exp(-2.0 * (omega + 2.0) ** 2)
    spectrum /= spectrum.sum()
    clean = kernels.matrix(kernel, times, edges, beta) @ spectrum
    rng = np.random.default_rng(0)
    return Measurement(times, clean + noise * rng.normal(size=num_times), np.full(num_times, noise))


def run(*arguments):
    command = [sys.executable, "-m", "meta.continuation", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_says_what_was_measured(tmp_path):
    data = measured()
    columns = {"tau": data.times, "G": data.correlation, "error": data.noise}
    for name in ("G.csv", "G.npz"):
        file = str(tmp_path / name)
        measurement.write(file, columns)
        found = measurement.read(file)
        for own, read in zip(data, found, strict=True):
            np.testing.assert_array_equal(own, read)
        measurement.write(file, {k: columns[k] for k in ("tau", "G")})
        np.testing.assert_array_equal(measurement.read(file, 0.1).noise, np.full(40, 0.1))
    covariance = 1e-6 * np.eye(40)
    np.savez(tmp_path / "C.npz", tau=data.times, G=data.correlation, covariance=covariance)
    found = measurement.read(str(tmp_path / "C.npz"))
    np.testing.assert_allclose(found.errors, 1e-3)
    assert sorted(os.listdir(tmp_path)) == ["C.npz", "G.csv", "G.npz"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "must not be empty"),
        ("time,value\n0,1\n", "header.*`tau,G`.*time,value"),
        ("tau,G\n0,1\n1\n", "Row 2.*2 values"),
        ("tau,G\n0,one\n", "numbers"),
        ("tau,G,error\n0,1,0.1\n", "told once"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, text, what):
    file = tmp_path / "G.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=what):
        measurement.read(str(file), 0.1)


def test_an_npz_that_is_none_is_named(tmp_path):
    file = tmp_path / "G.npz"
    file.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="readable npz"):
        measurement.read(str(file), 0.1)
    np.savez(file, tau=np.ones(3))
    with pytest.raises(ValueError, match="Missing.*'G'"):
        measurement.read(str(file), 0.1)
    np.savez(file, tau=np.ones(3), G=np.array([{}, {}, {}]))
    with pytest.raises(ValueError, match="readable npz"):
        measurement.read(str(file), 0.1)
    with pytest.raises(ValueError, match="readable CSV"):
        measurement.read(str(tmp_path / "absent.csv"), 0.1)


@pytest.mark.parametrize("kernel", kernels.KERNELS)
@pytest.mark.parametrize("noise", [1e-5, 1e-2, 0.3])
def test_what_was_measured_passes(kernel, noise):
    measurement.check(measured(kernel, noise), kernel, 10.0)


def broken(**changes):
    data = measured()
    return data._replace(**{k: f(getattr(data, k).copy()) for k, f in changes.items()})


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (broken(correlation=put(3, np.nan)), "`G` must be finite.*nan at position 3"),
        (broken(times=put(5, np.inf)), "`tau` must be finite"),
        (broken(noise=put(2, np.nan)), "`error` must be finite"),
        (broken(noise=put(2, 0.0)), "`error` must be positive"),
        (broken(noise=put(2, -1e-3)), "`error` must be positive"),
        (broken(correlation=lambda x: x[:-1]), "`G` must have a value for each of 40"),
        (broken(noise=lambda x: x[:-1]), "`error` must have a value for each of 40"),
        (broken(times=put(5, 0.1)), "`tau` must increase"),
        (broken(times=lambda x: x + 1.0), r"`tau` must be in \[0, beta\]"),
        (broken(correlation=lambda x: -x), "`G` must be positive.*give -G"),
        (broken(correlation=put(20, 0.5)), "`G` must be convex"),
        (broken(correlation=lambda x: 2.0 - x), "`G` must be convex"),
    ],
)
def test_what_cannot_have_been_measured_is_named(data, what):
    with pytest.raises(ValueError, match=what):
        measurement.check(data, "fermionic", 10.0)


def test_a_rise_is_none_of_laplace():
    data = measured("laplace")
    with pytest.raises(ValueError, match="`G` must fall"):
        measurement.check(data._replace(correlation=data.correlation[::-1]), "laplace", 10.0)
    with pytest.raises(ValueError, match="`kernel`"):
        measurement.check(data, "sine", 10.0)
    with pytest.raises(ValueError, match="`beta`"):
        measurement.check(data, "laplace", -1.0)


def test_weights_come_back(solver, weights):
    loaded, metadata = saving.load(weights)
    assert metadata["command"] == "none"
    for own, read in zip(solver.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(own.numpy(), read.numpy())


def test_weights_that_are_none_are_named(weights, tmp_path):
    with pytest.raises(ValueError, match="`weights`"):
        saving.load(str(tmp_path / "absent.npz"))
    with np.load(weights) as stored:
        arrays = dict(stored)
    name = next(k for k in arrays if k != "metadata")
    file = str(tmp_path / "altered.npz")
    np.savez(file, **arrays | {name: arrays[name] + 1.0})
    with pytest.raises(ValueError, match="altered"):
        saving.load(file)
    metadata = json.loads(str(arrays["metadata"]))
    np.savez(file, **arrays | {"metadata": np.array(json.dumps(metadata | {"format_version": 9}))})
    with pytest.raises(ValueError, match="version 9"):
        saving.load(file)
    metadata["config"]["iterations"] = 3
    np.savez(file, **arrays | {"metadata": np.array(json.dumps(metadata))})
    with pytest.raises(ValueError, match="config"):
        saving.load(file)
    np.savez(file, a=np.ones(3))
    with pytest.raises(ValueError, match="`weights`"):
        saving.load(file)


def test_an_export_runs_without_our_python(solver, tmp_path):
    path = str(tmp_path / "model")
    saving.export(path, solver, "fermionic", 80.0, 64, 1.0, {"commit": "abc"})
    test = evaluation.make(3, 1e-3, 32, 5)
    levels = np.array([1e-3, 2e-3, 1e-5])
    np.savez(tmp_path / "in.npz", g=test.correlations, noise=levels)
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        f"x = np.load({str(tmp_path / 'in.npz')!r})\n"
        f"f = tf.saved_model.load({path!r}).signatures['serving_default']\n"
        "y = f(correlation=tf.constant(x['g'], tf.float32), "
        "noise=tf.constant(x['noise'], tf.float32))\n"
        f"np.savez({str(tmp_path / 'out.npz')!r}, **{{k: v.numpy() for k, v in y.items()}})\n"
        "assert not any(m.startswith(('lopt_keras', 'meta', 'export')) for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    width = found["omega"][1] - found["omega"][0]
    np.testing.assert_allclose(found["spectrum"].sum(axis=1) * width, 1.0, atol=1e-5)
    for i, level in enumerate(levels):
        own = solving.solve(solver, test.kernel, test.correlations[i], level)
        np.testing.assert_allclose(found["spectrum"][i] * width, own.weights[0], atol=1e-3)
        np.testing.assert_allclose(found["error_95"][i] * width, own.bars[0, :, 1], atol=1e-3)
        np.testing.assert_allclose(found["chi2"][i], own.chi2[0], rtol=1e-2)
    with open(os.path.join(path, "assets", "metadata.json"), encoding="utf-8") as f:
        assert json.load(f)["commit"] == "abc"
    with pytest.raises(FileExistsError, match="exists"):
        saving.export(path, solver, "fermionic", 80.0, 64, 1.0)
    assert sorted(os.listdir(tmp_path)) == ["in.npz", "model", "out.npz"]


def test_the_command_solves_and_warns(weights, tmp_path):
    data = measured()
    file, out = str(tmp_path / "G.csv"), str(tmp_path / "A.csv")
    measurement.write(file, {"tau": data.times, "G": 2.0 * data.correlation})
    common = ["solve", f"--weights={weights}", f"--input={file}", "--beta=10", f"--out={out}"]
    result = run(*common, "--noise=2e-3", "--integral=2", "--refine")
    assert result.returncode == 0, result.stderr
    assert "chi2 = 1" in result.stdout
    assert "WARNING" not in result.stdout
    with open(out, encoding="utf-8") as f:
        header, *rows = csv.reader(f)
    assert header == ["omega", "A", "error_68", "error_95"]
    table = np.array(rows, float)
    assert table[:, 1].min() >= 0
    np.testing.assert_allclose(table[:, 1].sum() * (table[1, 0] - table[0, 0]), 2.0, atol=1e-5)
    assert (tmp_path / "A.png").stat().st_size > 1000
    # An untrained solver does not fit, and a wrong integral fits nothing.
    result = run(*common, "--noise=2e-3", "--integral=2")
    assert "the data contradict this answer" in result.stdout
    result = run(*common, "--noise=2e-3", "--integral=1.9")
    assert "no spectrum fits these data" in result.stdout


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ([], "noise must be told once"),
        (["--noise=0"], "`error` must be positive"),
        (["--noise=1e-3", "--integral=-1"], "`--integral`"),
        (["--noise=1e-3", "--weights=none.npz"], "`weights`"),
    ],
)
def test_the_command_says_what_is_wrong(weights, tmp_path, change, what):
    file = str(tmp_path / "G.csv")
    data = measured()
    measurement.write(file, {"tau": data.times, "G": data.correlation})
    out = str(tmp_path / "A.csv")
    result = run(
        "solve", f"--weights={weights}", f"--input={file}", "--beta=10", f"--out={out}", *change
    )
    assert result.returncode == 1
    assert what in result.stderr.splitlines()[-1]
    assert not os.path.exists(out)
