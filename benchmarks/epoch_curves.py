"""Pictures of Keras trainings: losses against epochs."""

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot(runs, title, file):
    """Draws train and validation loss: mean and range over seeds.

    Args:
        runs: dict from the name of an optimizer to a list of trainings, dicts with the
            losses of each epoch as `train` and `validation`, and perhaps with the seconds at
            the end of each as `epoch_seconds`: validation losses are then drawn against
            those too.
        title: of the picture.
        file: PNG to write.
    """
    timed = all("epoch_seconds" in run for trainings in runs.values() for run in trainings)
    panels = 3 if timed else 2
    figure, axes = plt.subplots(
        1, panels, figsize=(5.5 * panels, 4.5), sharey=True, layout="constrained"
    )
    for axis, split in zip(axes, ("train", "validation", "validation")[:panels], strict=True):
        draw(axis, runs, split, in_seconds=axis is axes[2] if timed else False)
        axis.set_title(f"{split} loss")
    axes[0].set_ylabel("loss (mean and range over seeds)")
    axes[1].legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_all(runs, columns, file):
    """Draws both losses of several models, two panels for each.

    Args:
        runs: dict from the name of a model to what `plot` takes.
        columns: models next to each other.
        file: PNG to write.
    """
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(
        rows, 2 * columns, figsize=(7 * columns, 3 * rows), squeeze=False, layout="constrained"
    )
    panels = axes.reshape(-1, 2)
    for pair in panels[len(runs) :]:
        pair[0].axis("off")
        pair[1].axis("off")
    for pair, (model, own) in zip(panels, runs.items(), strict=False):
        for axis, split in zip(pair, ("train", "validation"), strict=True):
            draw(axis, own, split)
            axis.set_title(f"{model}, {split}", fontsize=10)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw(axis, runs, split, in_seconds=False):
    """Draws the losses of a split against epochs or seconds: mean and range over seeds."""
    for i, (name, trainings) in enumerate(runs.items()):
        losses = np.array([training[split] for training in trainings])
        when = np.arange(1, losses.shape[1] + 1)
        if in_seconds:
            when = np.mean([training["epoch_seconds"] for training in trainings], axis=0)
        axis.plot(when, losses.mean(axis=0), label=name, color=f"C{i}", marker=".")
        axis.fill_between(when, losses.min(0), losses.max(0), color=f"C{i}", alpha=0.2, lw=0)
    axis.set(xlabel="seconds of fit, with compilation" if in_seconds else "epoch", yscale="log")
    axis.grid(alpha=0.3)
