"""Another inverse problem with the same class: a blurred line of a picture.

python benchmarks/continuation_deblurring.py --out_dir=benchmarks/results/continuation

A signal of 128 values, non-negative and of known sum, is blurred by a Gaussian of four cells and
measured with white noise of 3 or 0.3 percent of its mean; signals are of the families of
`meta.continuation.spectra`. `UnrolledSolver` is trained on blurs of 2 to 6 cells and
compared with Richardson and Lucy's method (scikit-image), stopped at the best iteration, with
Tikhonov's and with maximum entropy, all tuned on the same distribution.
"""

import os
import time

import keras
import matplotlib
import numpy as np
from absl import app, flags, logging
from skimage import restoration

from meta import provenance, random, smoke
from meta.continuation import classical, evaluation, saving, solving, spectra, training
from meta.continuation.evaluation import TestSet
from meta.continuation.solver import UnrolledSolver

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/continuation", "For the results.")
_STEPS = flags.DEFINE_integer("steps", 800, "Of the training.", 1)
_SPECTRA = flags.DEFINE_integer("spectra", 128, "Signals to compare on.", 6)
_TUNING = flags.DEFINE_integer("tuning", 32, "Signals to tune on.", 1)
smoke.define(steps=2, spectra=6, tuning=2)

_CELLS = 128
_WIDTHS = (2.0, 6.0)
_TESTED = 4.0
_LEVELS = (3e-2, 3e-3)
"""Noise over the mean of the blurred signal."""

_NOISE = (1e-3, 1e-1)
_BLUR_KINDS = 32
_ITERATIONS = (5, 10, 20, 40, 80, 160, 320)
_RIDGES = 10.0 ** np.arange(-6.0, 0.0, 0.5)
_TARGETS = (0.5, 0.7, 1.0, 1.4)


def blur(width, cells):
    """A Gaussian blur of cells to 128 values: `[128, cells]`, columns of sum 1 inside."""
    places, sources = ((0.5 + np.arange(n)) / n for n in (_CELLS, cells))
    distance = (places[:, None] - sources) * _CELLS / width
    return np.exp(-0.5 * np.square(distance)) / (width * np.sqrt(2.0 * np.pi))


def operator(width):
    """The blur on the solver's grid and on the fine one, and the noise's covariance."""
    fine = blur(width, training.FINE * _CELLS)
    coarse = fine.reshape(_CELLS, _CELLS, training.FINE).mean(axis=2)
    # The mean of the blurred signal is 1, so that noise is relative.
    return coarse * _CELLS, fine * _CELLS, np.eye(_CELLS)


def train():
    """A solver for all blurs and levels of noise."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    blurs = [operator(np.exp(rng.uniform(*np.log(_WIDTHS)))) for _ in range(_BLUR_KINDS)]
    operators = training.Operators.stack(blurs, _CELLS)
    solver = UnrolledSolver(_CELLS, shared=False)
    solver.build(None)
    trainer = training.Trainer(solver, operators, 8, 16, noise=_NOISE)
    training.fit(trainer, _STEPS.value)
    return solver


def make(num, level, seed):
    """A `TestSet` of one blur."""
    coarse, fine, _ = operator(_TESTED)
    seeds = [random.fold_in(random.seed(seed), i) for i in range(2)]
    weights = spectra.draw(seeds[0], num, training.FINE * _CELLS)
    noise = level * np.asarray(random.normal((num, _CELLS), seeds[1]), np.float64)
    data = np.asarray(weights, np.float64) @ fine.T + noise
    return TestSet(coarse, spectra.coarsen(weights, _CELLS).numpy(), data, level)


def richardson_lucy(test, iterations):
    # Of odd length, so that it has a middle: else the answer is shifted.
    psf = blur(_TESTED, _CELLS)[_CELLS // 2, 1:]
    return normalised(
        [
            restoration.richardson_lucy(
                np.maximum(data, 1e-6), psf, num_iter=iterations, clip=False
            )
            for data in test.correlations
        ]
    )


def tikhonov(test, ridge):
    u, s, vt = np.linalg.svd(test.kernel)
    return normalised(np.maximum((test.correlations @ u * s / (s**2 + ridge * s[0] ** 2)) @ vt, 0))


def maximum_entropy(test, target):
    return np.array(
        [
            classical.maximum_entropy(
                test.kernel, data, test.noise, choice="discrepancy", target=target
            ).weights
            for data in test.correlations
        ]
    )


def normalised(answers):
    answers = np.asarray(answers)
    return answers / answers.sum(axis=1, keepdims=True)


METHODS = {
    "Richardson-Lucy": (richardson_lucy, _ITERATIONS),
    "Tikhonov, cut at zero": (tikhonov, _RIDGES),
    "maximum entropy": (maximum_entropy, _TARGETS),
}


def compare(solvers, level):
    """Figures of all methods, and the test with its answers."""
    tuning, test = make(_TUNING.value, level, 1), make(_SPECTRA.value, level, 2)
    answers, rows = {}, {}
    for name, solver in solvers.items():
        solution = solving.solve(solver, test.kernel, test.correlations, test.noise)
        answers[name] = solution.weights
        covered = evaluation.coverage(solution.weights, solution.bars, test.truth)
        rows[name] = {"coverage": covered.tolist()}
    for name, (method, candidates) in METHODS.items():
        errors = [
            np.median(evaluation.relative_errors(method(tuning, x), tuning.truth))
            for x in candidates
        ]
        best = candidates[int(np.argmin(errors))]
        begin = time.process_time()
        answers[name] = method(test, best)
        seconds = (time.process_time() - begin) / _SPECTRA.value
        rows[name] = {"tuned": float(best), "seconds": seconds}
    for name, found in answers.items():
        rows[name] |= evaluation.figures(found, test.truth)
    return rows, test, answers


def draw(drawn, file):
    """Three signals at each noise level."""
    figure, axes = plt.subplots(len(drawn), 3, figsize=(14, 7), layout="constrained", sharex=True)
    for row, (level, test, answers) in zip(axes, drawn, strict=True):
        for i, axis in enumerate(row):
            axis.fill_between(
                np.arange(_CELLS), test.truth[i] * _CELLS, color="0.85", label="signal"
            )
            axis.plot(test.correlations[i], color="0.5", lw=1, label=f"data, noise {level:g}")
            for j, (name, found) in enumerate(answers.items()):
                axis.plot(found[i] * _CELLS, color=f"C{j}", lw=2 if j == 0 else 1, label=name)
            axis.set_ylim(0, 1.4 * test.truth[i].max() * _CELLS)
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("cell")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    begin = time.process_time()
    solvers = {"learned": train(), "learned for spectra, as it ships": saving.load()[0]}
    results, drawn = {"seconds_of_training": time.process_time() - begin}, []
    for level in _LEVELS:
        rows, test, answers = compare(solvers, level)
        results[f"{level:g}"] = rows
        drawn.append((level, test, answers))
        for name, row in rows.items():
            print(f"noise {level:g} {name:>34}: {row['relative_error'][0]:.3f}")
    provenance.write_results(os.path.join(_OUT_DIR.value, "deblurring.json"), results)
    draw(drawn, os.path.join(_OUT_DIR.value, "deblurring.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
