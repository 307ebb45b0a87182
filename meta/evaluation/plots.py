"""Pictures of a comparison."""

from collections.abc import Collection, Sequence
from typing import Any

import matplotlib
import numpy as np

from meta import files
from meta.evaluation import metrics
from meta.evaluation.benchmark import TaskResult
from meta.evaluation.candidates import ADAM

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_FACTORS = np.geomspace(1.0, 64.0, 200)
_RIVAL_WIDTH, _BASELINE_WIDTH = 2.4, 1.0


def plot_task(result: TaskResult, rivals: Collection[str], file: str) -> None:
    """Draws smoothed train and validation losses: median over seeds, and their range.

    Args:
        result: `benchmark.TaskResult`.
        rivals: names of the optimizers that are drawn bold.
        file: PNG to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, split in zip(axes, ("train", "validation"), strict=True):
        for i, (name, outcome) in enumerate(result.outcomes.items()):
            losses = getattr(outcome.bounded, split)
            steps = np.arange(1, len(losses) + 1)
            axis.plot(steps, metrics.median(losses), label=name, **_style(i, name in rivals))
            if name in rivals or name == ADAM:
                low, high = losses.min(axis=1), losses.max(axis=1)
                axis.fill_between(steps, low, high, color=_style(i, False)["color"], alpha=0.15)
        axis.set(xlabel="step", xscale="log", title=f"{split} loss")
        lowest = min(getattr(o.bounded, split).min() for o in result.outcomes.values())
        axis.set_yscale("log" if lowest > 0 else "linear")
        # What diverges would hide the others.
        bottom, top = axis.get_ylim()
        highest = result.start + 0.5 * abs(result.start)
        axis.set_ylim(top=min(top, highest) if highest > bottom else top)
        axis.grid(alpha=0.3)
    _finish(figure, axes[0], f"{result.entry.name}, {result.num_parameters} parameters", file)


def plot_ratios(results: Sequence[TaskResult], rivals: Collection[str], file: str) -> None:
    """Draws Adam's steps over each optimizer's, sorted over tasks, at equal losses."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("train_ratio", "validation_ratio"), strict=True):
        for i, optimizer in enumerate(results[0].outcomes):
            ratios = [metrics.median(getattr(r.outcomes[optimizer].metrics, name)) for r in results]
            fraction = (np.arange(len(ratios)) + 0.5) / len(ratios)
            style = _style(i, optimizer in rivals)
            axis.plot(fraction, np.sort(ratios), label=optimizer, marker=".", **style)
        axis.axhline(1.0, color="black", lw=0.8)
        axis.set(xlabel="fraction of tasks", yscale="log", title=f"at equal {name[:-6]} loss")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("steps of tuned Adam / steps")
    _finish(figure, axes[0], "How many times fewer steps than tuned Adam", file)


def plot_profiles(results: Sequence[TaskResult], rivals: Collection[str], file: str) -> None:
    """Draws performance profiles of the steps to the tuned Adam's losses."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    names = list(results[0].outcomes)
    for axis, target in zip(axes, ("train", "validation"), strict=True):
        steps = np.array(
            [
                [
                    metrics.median(getattr(r.outcomes[n].metrics, f"steps_to_{target}"))
                    for n in names
                ]
                for r in results
            ]
        )
        profiles = metrics.profile(steps, _FACTORS)
        for i, name in enumerate(names):
            axis.plot(_FACTORS, profiles[:, i], label=name, **_style(i, name in rivals))
        axis.set(xlabel="steps / steps of the fastest", xscale="log", ylim=(-0.02, 1.02))
        axis.set_title(
            f"to tuned Adam's {'final' if target == 'train' else 'lowest'} {target} loss"
        )
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("fraction of tasks")
    _finish(
        figure, axes[0], "Performance profiles: on what fraction of tasks within a factor", file
    )


def _style(i: int, is_rival: bool) -> dict[str, Any]:
    width = _RIVAL_WIDTH if is_rival else _BASELINE_WIDTH
    return {"color": f"C{i}", "lw": width, "ls": "-" if i < 10 else "--"}


def _finish(figure: Any, axis: Any, title: str, file: str) -> None:
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize=8)
    figure.suptitle(title)
    with files.whole(file) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)
