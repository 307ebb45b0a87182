"""Pictures of Keras trainings: losses against epochs."""

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot(runs, title, file):
    """Draws train and validation loss: mean and range over seeds.

    Args:
        runs: dict from the name of an optimizer to a list of trainings, dicts with the
            losses of each epoch as `train` and `validation`.
        title: of the picture.
        file: PNG to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("train", "validation"), strict=True):
        for i, (name, trainings) in enumerate(runs.items()):
            losses = np.array([training[split] for training in trainings])
            epochs = np.arange(1, losses.shape[1] + 1)
            axis.plot(epochs, losses.mean(axis=0), label=name, color=f"C{i}", marker=".")
            axis.fill_between(epochs, losses.min(0), losses.max(0), color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel="epoch", yscale="log", title=f"{split} loss")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss (mean and range over seeds)")
    axes[1].legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=120)
    plt.close(figure)
