"""Analytic continuation: trains the solver, exports it, and solves for spectra.

python -m meta.continuation solve --input=G.csv --beta=10 --noise=1e-3 --out=A.csv
python -m meta.continuation train --steps=9000 --out=out/solver.npz
python -m meta.continuation export --beta=10 --num_times=64 --out=out/continuation
"""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import keras
import matplotlib
import numpy as np
from absl import app, flags

from lopt_keras.types import Array
from meta import files
from meta.continuation import (
    classical,
    evaluation,
    kernels,
    measurement,
    saving,
    solving,
    training,
)
from meta.continuation.solver import UnrolledSolver
from meta.provenance import commit

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT = flags.DEFINE_string(
    "out",
    None,
    "solve: the spectrum, .csv or .npz; its picture is beside it. train: the weights, .npz. "
    "export: the directory of the SavedModel.",
    required=True,
)
_WEIGHTS = flags.DEFINE_string("weights", saving.PRETRAINED, "solve, export: what train wrote.")
_KERNEL = flags.DEFINE_enum(
    "kernel", "fermionic", sorted(kernels.KERNELS), "solve, export: what takes A to G."
)
_BETA = flags.DEFINE_float("beta", None, "solve, export: inverse temperature; the largest tau.")
_MAX_FREQUENCY = flags.DEFINE_float(
    "max_frequency", 8.0, "solve, export: the spectrum is within this, in units of 1 / tau.", 0.0
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "solve: .csv with the header tau,G or tau,G,error; or .npz with the arrays tau, G, and "
    "error or covariance.",
)
_NOISE = flags.DEFINE_float("noise", None, "solve: standard error of G, if not in --input.")
_INTEGRAL = flags.DEFINE_float(
    "integral", 1.0, "solve: the integral of the spectrum, by which G is divided."
)
_REFINE = flags.DEFINE_bool(
    "refine", False, "solve: whether the answer is the default model of maximum entropy."
)
_NUM_TIMES = flags.DEFINE_integer("num_times", 64, "export: equidistant, 0 and beta included.", 8)
_INITIAL = flags.DEFINE_string("initial", None, "train: weights to start from, with their sizes.")
_STEPS = flags.DEFINE_integer("steps", 9000, "train: of the optimizer.", 1)
_OPERATORS = flags.DEFINE_integer("operators", 96, "train: kernels with noise to draw from.", 1)
_KINDS = flags.DEFINE_integer("kinds", 8, "train: kernels in a step.", 1)
_SPECTRA = flags.DEFINE_integer("spectra", 16, "train: spectra for each of these.", 1)
_ONLY = flags.DEFINE_enum(
    "only", None, sorted(kernels.KERNELS), "train: one kernel instead of all."
)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-3, "train: the highest.", 0.0)
_NUM_FREQUENCIES = flags.DEFINE_integer("num_frequencies", 128, "train: cells of the grid.", 4)
_ITERATIONS = flags.DEFINE_integer("iterations", 8, "train: of the solver.", 1)
_CHANNELS = flags.DEFINE_integer("channels", 32, "train: of its network.", 1)
_SHARED = flags.DEFINE_bool("shared", False, "train: whether iterations share their network.")
_SEED = flags.DEFINE_integer("seed", 0, "train: of weights and data.", 0)

# Of the learned answer as a default model; benchmarks/continuation.py tunes it for precise data.
_BLUR = 0.5


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in _COMMANDS:
        raise app.UsageError(f"Give one of {sorted(_COMMANDS)}. Received: {argv[1:]}")
    try:
        _COMMANDS[argv[1]]()
    except (FileExistsError, TypeError, ValueError) as error:
        sys.exit(f"{argv[1]}: {error}")


def train() -> None:
    """Trains a solver; killed and run again with the same flags, it goes on."""
    provenance: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "meta.continuation", *sys.argv[1:]]),
        "commit": commit(),
        "seed": _SEED.value,
    }
    keras.utils.set_random_seed(_SEED.value)
    rng = np.random.default_rng(_SEED.value)
    width = _NUM_FREQUENCIES.value
    operators = training.Operators.stack(
        training.operator(rng, width, _ONLY.value) for _ in range(_OPERATORS.value)
    )
    solver = UnrolledSolver(width, _ITERATIONS.value, _CHANNELS.value, shared=_SHARED.value)
    solver.build(None)
    if _INITIAL.value:
        solver, provenance["initial"] = saving.load(_INITIAL.value)
    trainer = training.Trainer(solver, operators, _KINDS.value, _SPECTRA.value, _SEED.value)
    backup = keras.callbacks.BackupAndRestore(f"{_OUT.value}.backup", double_checkpoint=True)
    training.fit(trainer, _STEPS.value, _LEARNING_RATE.value, [backup], verbose=2)
    provenance["evaluation"] = evaluation.of_solver(solver)
    saving.save(_OUT.value, solver, provenance)
    print(f"{solver.count_params()} parameters: {_OUT.value}")
    for level, own in provenance["evaluation"].items():
        print(f"noise {level}: median error {own['error']:.3f}, coverage {own['coverage']}")


def export() -> None:
    """Writes a SavedModel for one kernel and grid."""
    beta = _required("beta", _BETA)
    solver, metadata = saving.load(_WEIGHTS.value)
    grid = (_KERNEL.value, beta, _NUM_TIMES.value, _max_frequency())
    saving.export(_OUT.value, solver, *grid, metadata)
    print(f"Exported to {_OUT.value}")


def solve() -> None:
    """Writes the spectrum of a measurement, with error bars, and a picture."""
    beta, file = _required("beta", _BETA), _required("input", _INPUT)
    if not _INTEGRAL.value > 0:
        raise ValueError(f"`--integral` must be positive. Received: {_INTEGRAL.value}")
    top = _max_frequency()
    data = measurement.read(file, _NOISE.value)
    measurement.check(data, _KERNEL.value, beta)
    solver, _ = saving.load(_WEIGHTS.value)
    edges = kernels.edges(_KERNEL.value, solver.num_frequencies, top)
    matrix = kernels.matrix(_KERNEL.value, data.times, edges, beta) * _INTEGRAL.value
    solution = solving.solve(solver, matrix, data.correlation, data.noise)
    weights, chi2 = solution.weights[0], float(solution.chi2[0])
    if _REFINE.value:
        default = solving.as_default(weights, _BLUR)
        arguments = (matrix, data.correlation, data.noise, default)
        weights, chi2, _ = classical.maximum_entropy(*arguments, choice="discrepancy")
    _report(matrix, data, chi2)
    scale = _INTEGRAL.value / (edges[1] - edges[0])
    columns = {
        "omega": 0.5 * (edges[1:] + edges[:-1]),
        "A": weights * scale,
        "error_68": solution.bars[0, :, 0] * scale,
        "error_95": solution.bars[0, :, 1] * scale,
    }
    measurement.write(_OUT.value, columns)
    picture = f"{os.path.splitext(_OUT.value)[0]}.png"
    _draw(picture, columns, data, matrix @ weights)
    print(f"Spectrum: {_OUT.value}, picture: {picture}")


def _report(matrix: Array, data: measurement.Measurement, chi2: float) -> None:
    """Says how the answer fits, and what contradicts the data."""
    size = len(data.correlation)
    print(f"chi2 = {chi2:.3g}: mean squared misfit of {size} values in units of their errors")
    if solving.exceedance(chi2, size) > solving.SIGNIFICANT:
        return
    best = classical.maximum_entropy(matrix, data.correlation, data.noise, choice=1e-2).chi2
    if solving.exceedance(best, size) <= solving.SIGNIFICANT:
        print(
            f"WARNING: no spectrum fits these data, the best has chi2 = {best:.3g}. The errors may "
            "be too small or correlated, --beta, --kernel, --integral or --max_frequency wrong."
        )
    else:
        print(
            f"WARNING: the data contradict this answer; others fit (chi2 = {best:.3g}). --refine "
            "finds the one nearest to it that does."
        )


def _draw(
    file: str, columns: Mapping[str, Array], data: measurement.Measurement, fitted: Array
) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    omega, spectrum = columns["omega"], columns["A"]
    for name, shade in (("error_95", 0.15), ("error_68", 0.3)):
        low = np.maximum(spectrum - columns[name], 0.0)
        label = f"{name[-2:]} % of frequencies"
        left.fill_between(
            omega, low, spectrum + columns[name], color="C0", alpha=shade, lw=0, label=label
        )
    left.plot(omega, spectrum, color="C0")
    left.set(xlabel="frequency", ylabel="A", ylim=(0, None))
    left.legend()
    right.errorbar(data.times, data.correlation - fitted, data.errors, fmt=".", color="C1")
    right.axhline(0.0, color="0.3", lw=1)
    right.set(xlabel="tau", ylabel="G minus that of the answer")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with files.whole(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _required(name: str, flag: flags.FlagHolder) -> Any:
    if flag.value is None:
        raise ValueError(f"`--{name}` is needed.")
    return flag.value


def _max_frequency() -> float:
    if not (np.isfinite(_MAX_FREQUENCY.value) and _MAX_FREQUENCY.value > 0):
        raise ValueError(f"`--max_frequency` must be positive. Received: {_MAX_FREQUENCY.value}")
    return _MAX_FREQUENCY.value


_COMMANDS = {"train": train, "solve": solve, "export": export}
