"""Pictures of a genealogy."""

from typing import Any

import matplotlib
import numpy as np

from lopt_keras.types import Array
from meta.population.genealogy import Genealogy

matplotlib.use("Agg")
from matplotlib import collections
from matplotlib import pyplot as plt

_MOST_ARROWS = 400


def plot(genealogy: Genealogy, best: int, file: str) -> None:
    """Draws scores, and lineages: a row for each member, coloured by its score.

    A line between rows, with a dot at its end, is a copy of theta. The line of the best
    member of the last generation is drawn over the rows, back to its founder.

    Args:
        genealogy: `Genealogy` of one generation or more.
        best: index of that member.
        file: PNG to write.
    """
    figure, axes = plt.subplots(
        3, 1, figsize=(11, 9), sharex=True, layout="constrained", height_ratios=(3, 4, 1)
    )
    scores, steps = genealogy.scores, genealogy.steps
    _plot_scores(axes[0], steps, scores)
    colors = _plot_rows(axes[1], steps, scores)
    _plot_copies(axes[1], genealogy)
    _plot_line(axes[1], genealogy, best)
    figure.colorbar(colors, ax=axes[1], label="score")
    founders = [len(set(row)) for row in genealogy.founders().tolist()]
    axes[2].step(steps, founders, where="post", color="black", label="founders with descendants")
    own = [
        np.mean(np.asarray(g["trainers"]) == np.arange(genealogy.num_members))
        * genealogy.num_members
        for g in genealogy.generations
    ]
    axes[2].plot(steps, own, color="C1", lw=0.8, label="members that train themselves")
    axes[2].set(xlabel="outer step", ylim=(0, genealogy.num_members + 0.5))
    axes[2].legend(fontsize=8)
    axes[2].grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _plot_scores(axis: Any, steps: Array, scores: Array) -> None:
    axis.plot(steps, scores, color="0.75", lw=0.6)
    axis.plot(steps, np.nanmedian(scores, axis=1), color="C0", lw=2, label="median")
    axis.plot(steps, np.nanmin(scores, axis=1), color="C2", lw=2, label="best")
    axis.set(ylabel="score, lower is better")
    axis.legend()
    axis.grid(alpha=0.3)


def _plot_rows(axis: Any, steps: Array, scores: Array) -> Any:
    members = np.arange(scores.shape[1] + 1) - 0.5
    edges = np.concatenate([[0], steps])
    low, high = np.nanquantile(scores, [0.01, 0.99])
    colors = axis.pcolormesh(edges, members, scores.T, cmap="viridis_r", vmin=low, vmax=high)
    axis.set(ylabel="member", yticks=np.arange(scores.shape[1]))
    return colors


def _plot_copies(axis: Any, genealogy: Genealogy) -> None:
    copies = [(g["step"], *copy) for g in genealogy.generations for copy in g["copies"]]
    # Of too many, every so manyth.
    copies = copies[:: -(-len(copies) // _MOST_ARROWS) or 1]
    lines = [[(step, winner), (step, loser)] for step, loser, winner in copies]
    axis.add_collection(collections.LineCollection(lines, colors="white", lw=0.5, alpha=0.7))
    axis.plot(
        [step for step, *_ in copies], [loser for _, loser, _ in copies], "w.", ms=2.5, alpha=0.9
    )


def _plot_line(axis: Any, genealogy: Genealogy, best: int) -> None:
    line = genealogy.ancestry(best)
    begins = [0, *genealogy.steps]
    places = [(begins[list(genealogy.steps).index(e["step"])], e["member"]) for e in line]
    places.append((genealogy.steps[-1], best))
    x, y = zip(*places, strict=True)
    axis.step(x, y, where="post", color="red", lw=1.5, label="line of the best at the end")
    axis.legend(fontsize=8, loc="upper right")
