"""The same weights under JAX and torch as under TensorFlow. Run by `make test-backends`."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parent / "train.py"


def trained(backend, folder):
    """What `train.py` writes: dict of arrays."""
    out = folder / f"{backend}.npz"
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, SCRIPT, out], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trained("tensorflow", tmp_path_factory.mktemp("reference"))


def if_installed(backend):
    missing = importlib.util.find_spec(backend) is None
    return pytest.param(backend, marks=pytest.mark.skipif(missing, reason=f"no {backend} here"))


@pytest.mark.parametrize("backend", [if_installed("jax"), if_installed("torch")])
def test_the_same_weights_as_under_tensorflow(backend, reference, tmp_path):
    weights = trained(backend, tmp_path)
    assert set(weights) == set(reference)
    for name, expected in reference.items():
        # Over 50 steps of a network, the shipped rule's iterations enlarge what rounding differs.
        atol = 1e-3 if name.startswith("fit/") else 1e-5
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=atol, err_msg=name)
