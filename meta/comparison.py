"""A learned optimizer against tuned hand-designed ones, on one task."""

from typing import NamedTuple

import matplotlib
import numpy as np
import tensorflow as tf
import tqdm

from lopt_keras import fusion, rules
from meta import progress, random
from meta.training import unroll

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_HALF_DECADES = 10.0 ** np.arange(-2.0, 2.5, 0.5)
BASELINES = {
    "SGD": (rules.SGD, 0.1 * _HALF_DECADES),
    "Adam": (rules.Adam, 0.01 * _HALF_DECADES),
    "AdamW": (rules.AdamW, 0.01 * _HALF_DECADES),
}
"""The hand-designed rules and the 9 learning rates that each is tuned over."""

_TUNING_SEEDS, _FRESH_SEEDS = 4, 8
_TAIL = 0.1
_SMOOTHED = 0.02


class Curves(NamedTuple):
    """Learning curves of one optimizer.

    Attributes:
        name: for the legend.
        train, test: losses, `[steps, seeds]`.
    """

    name: str
    train: np.ndarray
    test: np.ndarray


def compare(task, rule, theta, num_steps, seed):
    """Runs a learned rule and each tuned baseline on fresh problems.

    A baseline's learning rate is the one with the lowest mean validation loss over
    the last tenth of the steps, on problems of its own. All optimizers then get
    the same fresh problems: initial parameters and order of the batches.

    Args:
        task, rule: `Task`, `UpdateRule`.
        theta: the learned meta-parameters, dict of arrays.
        num_steps: inner steps.
        seed: integer.

    Returns:
        List of `Curves`, the learned rule's first.
    """
    tuning_seed, fresh_seed = (random.fold_in(random.seed(seed), i) for i in (2, 3))

    def fresh(name, rule, theta):
        trajectory = run(rule, task, [theta], num_steps, fresh_seed, "test", _FRESH_SEEDS)
        return Curves(name, trajectory.train_loss[:, 0], trajectory.outer_loss[:, 0])

    def tuned(name, baseline, grid):
        candidates = [baseline(learning_rate=float(rate)) for rate in grid]
        thetas = [candidate.init_theta() for candidate in candidates]
        tuning = run(
            candidates[0], task, thetas, num_steps, tuning_seed, "validation", _TUNING_SEEDS
        )
        best = int(np.argmin(_final_loss(tuning.outer_loss).mean(axis=-1)))
        label = f"{name}, learning rate {grid[best]:.2g}"
        return fresh(label, candidates[best], thetas[best])

    curves = []
    with tqdm.tqdm(total=1 + len(BASELINES), unit="optimizer", leave=False) as bar:
        for name, baseline in {"learned": None, **BASELINES}.items():
            with progress.telling(bar, f"compiling and running {name}"):
                curves.append(tuned(name, *baseline) if baseline else fresh(name, rule, theta))
            bar.update()
    return curves


def summarise(curves):
    """The figures of each optimizer: dict that JSON can hold.

    For each: mean train loss over the run, and train and test loss at the end
    (the last tenth of the steps), each as mean and standard deviation over seeds.
    """
    summary = {}
    for curve in curves:
        figures = {
            "mean_train_loss": curve.train.mean(axis=0),
            "final_train_loss": _final_loss(curve.train),
            "final_test_loss": _final_loss(curve.test),
        }
        summary[curve.name] = {
            name: {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
            for name, values in figures.items()
        }
    return summary


def plot(curves, title, file):
    """Draws train and test loss against steps: median and quartiles over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("train", "test"), strict=True):
        for i, curve in enumerate(curves):
            losses = getattr(curve, split)
            losses = smooth(losses, max(1, int(_SMOOTHED * len(losses))))
            low, middle, high = np.nanquantile(losses, [0.25, 0.5, 0.75], axis=1)
            steps = np.arange(len(losses))
            axis.plot(steps, middle, label=curve.name, color=f"C{i}", lw=2.5 if i == 0 else 1.2)
            axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel="step", yscale="log", title=f"{split} loss")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss (median and quartiles over seeds)")
    axes[1].legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def smooth(losses, width):
    """Mean over the last `width` entries up to each, fewer at the start: `[steps, seeds]`."""
    total = np.cumsum(np.pad(losses, ((width, 0), (0, 0))), axis=0)
    count = np.minimum(np.arange(1, len(losses) + 1), width)
    return (total[width:] - total[:-width]) / count[:, None]


def run(rule, task, thetas, num_steps, seed, split, seeds):
    """Runs a rule with several thetas on the same problems.

    Args:
        rule, task: `UpdateRule`, `Task`.
        thetas: list of dicts of arrays.
        num_steps: inner steps, which the rule is told.
        seed: `[2]`.
        split: of the outer loss: "train", "validation" or "test".
        seeds: number of problems.

    Returns:
        `unroll.Trajectory` of arrays `[num_steps, len(thetas), seeds]`.
    """

    @tf.function(jit_compile=True, autograph=False)
    def program(particles):
        inner = unroll.begin(rule, task, particles, random.fold_in(seed, 0), seeds, num_steps)
        batches = random.fold_in(seed, 1)
        with fusion.scope():
            return unroll.run(rule, task, particles, inner, batches, num_steps, seeds, split)[0]

    particles = {
        name: tf.constant(np.repeat([theta[name] for theta in thetas], seeds, axis=0))
        for name in thetas[0]
    }
    shape = (num_steps, len(thetas), seeds)
    # As a concrete function: each rule and split is a program of its own, made once.
    trajectory = program.get_concrete_function(particles)(particles)
    return unroll.Trajectory(*[x.numpy().reshape(shape) for x in trajectory])


def _final_loss(losses):
    """Mean over the last tenth of the steps; infinite where a loss is not finite."""
    tail = losses[-max(1, int(_TAIL * len(losses))) :]
    return np.where(np.isfinite(tail), tail, np.inf).mean(axis=0)
