"""Variance of estimators whose problems continue, on tasks of the default weights' mixture.

python benchmarks/gradients/noise_reuse.py --out_dir=benchmarks/results/gradients

Theta is fixed. Successive estimates of one worker share perturbations, so what is compared
is the variance of means over many of them, between workers with seeds of their own.
"""

import os

import matplotlib
import numpy as np
import tensorflow as tf
import tqdm
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer
from meta import estimators, provenance, random, smoke
from meta.tasks import mixture
from meta.tasks.sampling import distribution
from meta.training import curriculum

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/gradients", "For the picture and the figures.")
_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights, or a SavedModel.")
_TASKS = flags.DEFINE_list(
    "tasks", ["image_mlp/1", "mlp_autoencoder/0", "char_rnn/0"], "Of the set train: FAMILY/INDEX."
)
_WORKERS = flags.DEFINE_integer("workers", 6, "Independent runs.", lower_bound=2)
_ESTIMATES = flags.DEFINE_integer("estimates", 60, "Averaged in each run.", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(tasks=["image_mlp/1"], workers=2, estimates=1)

SETTINGS = [("pes", 0.01), ("nres", 0.01), ("nres", 0.02)]
"""Estimator and standard deviation of the perturbations."""

_SEGMENT, _HORIZON, _SHORTEST, _PARTICLES = 40, 1000, 100, 32


def measure(optimizer, task, name, stddev):
    """The variance of a mean over estimates, summed over theta, and the mean meta-loss: dict."""
    theta = {key: tf.constant(value) for key, value in optimizer.theta.items()}
    estimator = estimators.get(
        name,
        optimizer.rule,
        task,
        num_particles=_PARTICLES,
        stddev=stddev,
        unroll_length=_SEGMENT,
        horizon=_HORIZON,
        outer_split="validation",
    )
    lengths = curriculum.Curriculum("log_uniform", _HORIZON, shortest=_SHORTEST)

    @tf.function(jit_compile=True, autograph=False)
    def step(state, seed):
        length = lengths.length(0, random.fold_in(seed, 0))
        return estimator.estimate(theta, state, random.fold_in(seed, 1), length)

    means, losses = [], []
    for run in range(_WORKERS.value):
        seed = random.fold_in(random.seed(1), run)
        state = estimator.init_state(theta, seed)
        estimates = []
        # The first round of problems began staggered, with unperturbed starts.
        for i in range(_HORIZON // _SEGMENT + _ESTIMATES.value):
            estimate = step(state, random.fold_in(seed, i))
            state = estimate.state
            estimates.append(np.concatenate([np.ravel(x) for x in estimate.gradient.values()]))
            losses.append(float(estimate.metrics["meta_loss"]))
        means.append(np.mean(estimates[-_ESTIMATES.value :], axis=0))
    return {
        "estimator": name,
        "stddev": stddev,
        "variance": float(np.var(means, axis=0, ddof=1).sum()),
        "meta_loss": float(np.mean(losses)),
    }


def plot(results, file):
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    x = np.arange(len(results))
    for k, (name, stddev) in enumerate(SETTINGS):
        heights = [found[k]["variance"] / found[0]["variance"] for found in results.values()]
        axis.bar(x + 0.27 * (k - 1), heights, 0.25, label=f"{name}, stddev {stddev}")
    axis.set_xticks(x, results)
    axis.set(ylabel=f"variance of the mean of {_ESTIMATES.value} estimates, relative to pes")
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    optimizer = LearnedOptimizer(_WEIGHTS.value)
    results = {}
    with tqdm.tqdm(total=len(_TASKS.value) * len(SETTINGS), unit="setting") as bar:
        for label in _TASKS.value:
            family, index = label.split("/")
            config = distribution.config(family, int(index))
            task = mixture.scored([config], "adam_steps", _DATA_DIR.value)
            results[label] = []
            for name, stddev in SETTINGS:
                results[label].append(measure(optimizer, task, name, stddev))
                bar.write(f"{label}: {results[label][-1]}")
                bar.update()
    provenance.write_results(os.path.join(_OUT_DIR.value, "noise_reuse.json"), results)
    plot(results, os.path.join(_OUT_DIR.value, "noise_reuse.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
