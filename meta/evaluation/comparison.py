"""A learned optimizer against tuned hand-designed ones, on one task."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import tqdm

from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Theta
from meta import files, progress, random
from meta.evaluation import metrics
from meta.evaluation.candidates import BASELINES, HandDesigned
from meta.evaluation.learning_rates import grid
from meta.inner.training import Curves, InnerTraining
from meta.tasks.base import Task

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COMPARED = ("SGD, momentum", "Adam", "AdamW")
"""Those of the baselines that are compared with."""

_NUM_RATES = 9
_TUNING_SEEDS, _FRESH_SEEDS = 4, 8
_SMOOTHED = 0.02


def compare(
    task: Task, rule: UpdateRule, theta: Theta, num_steps: int, seed: int
) -> dict[str, Curves]:
    """Runs a learned rule and each tuned baseline on fresh problems.

    A baseline's learning rate is the one of 9 half-decades with the lowest mean validation loss
    over the last 5 % of the steps, on problems of its own. All optimizers then get
    the same fresh problems: initial parameters and order of the batches.

    Args:
        task, rule: `Task`, `UpdateRule`.
        theta: the learned meta-parameters, dict of arrays.
        num_steps: inner steps, which the rules are told.
        seed: integer.

    Returns:
        Dict from the name of an optimizer, for the legend, to its `Curves` on train and test
        batches `[steps, seeds]`; the learned rule's first.
    """
    tuning_seed, fresh_seed = (random.fold_in(random.seed(seed), i) for i in (2, 3))

    def fresh(rule: UpdateRule, theta: Theta) -> Curves:
        training = InnerTraining(task, rule, 1, _FRESH_SEEDS, num_steps, True, split="test")
        return training([theta], fresh_seed)[0]

    def tuned(baseline: HandDesigned) -> tuple[str, Curves]:
        rates = grid(baseline.middle, _NUM_RATES)
        candidates = [baseline.rule(learning_rate=rate) for rate in rates]
        thetas = [candidate.init_theta() for candidate in candidates]
        training = InnerTraining(task, candidates[0], len(rates), _TUNING_SEEDS, num_steps, True)
        losses = [metrics.final(curves.held_out).mean() for curves in training(thetas, tuning_seed)]
        best = int(np.argmin(losses))
        label = f"{baseline.name}, learning rate {rates[best]:.2g}"
        return label, fresh(candidates[best], thetas[best])

    curves: dict[str, Curves] = {}
    with tqdm.tqdm(total=1 + len(COMPARED), unit="optimizer", leave=False) as bar:
        for name in (None, *COMPARED):
            with progress.telling(bar, f"compiling and running {name or 'learned'}"):
                own = ("learned", fresh(rule, theta)) if name is None else tuned(BASELINES[name])
                curves |= dict([own])
            bar.update()
    return curves


def summarise(curves: Mapping[str, Curves]) -> dict[str, Any]:
    """The figures of each optimizer: dict that JSON can hold.

    For each: mean train loss over the run, and train and test loss at the end
    (the last 5 % of the steps), each as mean and standard deviation over seeds.

    Args:
        curves: from `compare`.
    """
    summary = {}
    for optimizer, own in curves.items():
        losses = {
            "mean_train_loss": own.train.mean(axis=0),
            "final_train_loss": metrics.final(own.train),
            "final_test_loss": metrics.final(own.held_out),
        }
        summary[optimizer] = {
            name: {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
            for name, values in losses.items()
        }
    return summary


def plot(curves: Mapping[str, Curves], title: str, file: str) -> None:
    """Draws train and test loss against steps: median and quartiles over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("train", "test"), strict=True):
        for i, (name, own) in enumerate(curves.items()):
            losses = own.train if split == "train" else own.held_out
            losses = metrics.smooth(losses, max(1, int(_SMOOTHED * len(losses))))
            low, middle, high = np.nanquantile(losses, [0.25, 0.5, 0.75], axis=1)
            steps = np.arange(len(losses))
            axis.plot(steps, middle, label=name, color=f"C{i}", lw=2.5 if i == 0 else 1.2)
            axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel="step", yscale="log", title=f"{split} loss")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss (median and quartiles over seeds)")
    axes[1].legend()
    figure.suptitle(title)
    with files.whole(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
