"""Trained solvers as files: weights with their provenance, and SavedModels for any program."""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.types import Array, Arrays, Tensor, Tensors
from meta import files
from meta.continuation import kernels
from meta.continuation.problem import Basis
from meta.continuation.solver import UnrolledSolver

PRETRAINED = str(pathlib.Path(__file__).parent / "pretrained.npz")
"""The weights that ship."""

FORMAT_VERSION = 1
_METADATA = "metadata"
_LEAST_NOISE = 1e-6


def save(file: str, solver: UnrolledSolver, metadata: dict[str, Any] | None = None) -> None:
    """Writes the solver's weights as plain arrays, with its config, in one npz file.

    Args:
        file: destination, replaced if it exists.
        solver: `UnrolledSolver`, built.
        metadata: dict that JSON can hold: where the weights come from.
    """
    arrays = _arrays(solver)
    content = {
        **(metadata or {}),
        "format_version": FORMAT_VERSION,
        "config": {
            k: v for k, v in solver.get_config().items() if k not in ("name", "dtype", "trainable")
        },
        "sha256": _digest(arrays),
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
    with files.whole(file) as temporary, open(temporary, "wb") as f:
        np.savez(f, **{**arrays, _METADATA: np.array(text)})  # type: ignore[arg-type]  # NumPy's stub takes the names for options.


def load(file: str = PRETRAINED) -> tuple[UnrolledSolver, dict[str, Any]]:
    """The solver in a file of `save`; nothing in the file is executed.

    Returns:
        `(solver, metadata)`.

    Raises:
        ValueError: if the file is missing, none of `save`, of another version, or altered.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored}
        metadata = json.loads(str(arrays.pop(_METADATA)))
        version = metadata["format_version"]
        if version == FORMAT_VERSION:
            config, digest = metadata["config"], metadata["sha256"]
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"`weights` must be a file of a trained solver: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file!r} has format version {version!r}; this version reads {FORMAT_VERSION}."
        )
    if _digest(arrays) != digest:
        raise ValueError(f"{file!r} has been altered: its sha256 does not match.")
    solver = UnrolledSolver(**config)
    solver.build(None)
    expected = {name: tuple(variable.shape) for name, variable in _variables(solver).items()}
    found = {name: array.shape for name, array in arrays.items()}
    if expected != found:
        raise ValueError(f"{file!r} does not fit its config: {expected} expected, {found} found.")
    for name, variable in _variables(solver).items():
        variable.assign(arrays[name])
    return solver, metadata


def _variables(solver: UnrolledSolver) -> dict[str, keras.Variable]:
    """Dict from name to variable, the name without that of the model."""
    return {variable.path.partition("/")[2]: variable for variable in solver.weights}


def _arrays(solver: UnrolledSolver) -> Arrays:
    return {name: np.asarray(variable.value) for name, variable in _variables(solver).items()}


def _digest(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def export(
    path: str,
    solver: UnrolledSolver,
    kernel: str,
    beta: float,
    num_times: int,
    max_frequency: float,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a SavedModel for one kernel and grid, which needs no Python of ours.

    Its signature `serving_default` takes `correlation`, `[N, T]` float32, at `num_times`
    equidistant times from 0 to beta inclusive, and `noise`, `[N]` float32, its standard
    deviations; it returns `omega` `[W]`, the `spectrum` `[N, W]`, of integral 1,
    `error_68` and `error_95` `[N, W]`, and `chi2` `[N]`.

    Args:
        path: directory, which must not exist.
        solver: `UnrolledSolver`.
        kernel: of `kernels.KERNELS`.
        beta: inverse temperature.
        num_times: T.
        max_frequency: the grid's last edge.
        metadata: dict that JSON can hold, for `assets/metadata.json`.

    Raises:
        FileExistsError: if there is something at `path`.
        ValueError: if there is no such kernel.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path!r} exists. Choose another path.")
    content = {**(metadata or {}), "kernel": kernel, "beta": beta, "num_times": num_times}
    content["max_frequency"] = max_frequency
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        file = os.path.join(scratch, "metadata.json")
        with open(file, "w", encoding="utf-8") as f:
            json.dump(content, f, indent=1, sort_keys=True)
        module = tf.Module()
        module.weights = [variable.value for variable in solver.weights]
        module.assets = [tf.saved_model.Asset(file)]
        function = _signature(solver, kernel, beta, num_times, max_frequency)
        temporary = os.path.join(scratch, "model")
        tf.saved_model.save(module, temporary, signatures=function)
        shutil.move(temporary, path)


def _signature(
    solver: UnrolledSolver, kernel: str, beta: float, num_times: int, max_frequency: float
) -> Any:
    edges = kernels.edges(kernel, solver.num_frequencies, max_frequency)
    times = np.linspace(0.0, beta, num_times)
    basis = Basis.of(kernels.matrix(kernel, times, edges, beta), _LEAST_NOISE)
    omega = tf.constant(0.5 * (edges[1:] + edges[:-1]), tf.float32)
    width = float(edges[1] - edges[0])
    # In units of noise 1; float64 where five digits of G count.
    s = tf.constant(basis.singular_values * _LEAST_NOISE)
    v, project = tf.constant(basis.v), tf.constant(basis.project * _LEAST_NOISE)

    def spectrum(correlation: Tensor, noise: Tensor) -> Tensors:
        noise = tf.cast(noise, tf.float64)[:, None]
        correlation = tf.cast(correlation, tf.float64) / noise
        data = tf.matmul(correlation, project, transpose_b=True)
        inputs = {"singular_values": s / noise, "data": data, "basis": v}
        inputs = {name: tf.cast(x, tf.float32)[None] for name, x in inputs.items()}
        weights, bars = (x[0] for x in solver(inputs))
        weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
        fitted = tf.matmul(tf.cast(weights, tf.float64), v) * s / noise
        beyond = tf.reduce_sum(tf.square(correlation), 1) - tf.reduce_sum(tf.square(data), 1)
        misfit = tf.reduce_sum(tf.square(fitted - data), axis=1) + beyond
        return {
            "omega": omega,
            "spectrum": weights / width,
            "error_68": bars[..., 0] / width,
            "error_95": bars[..., 1] / width,
            "chi2": tf.cast(misfit / num_times, tf.float32),
        }

    return tf.function(spectrum, autograph=False).get_concrete_function(
        correlation=tf.TensorSpec([None, num_times], tf.float32),
        noise=tf.TensorSpec([None], tf.float32),
    )
