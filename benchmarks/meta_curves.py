"""Meta-training curves by family of tasks, from the summaries of a run.

python benchmarks/meta_curves.py --run_dir=out/default --out_dir=benchmarks/results/default
"""

import itertools
import os

import matplotlib
import numpy as np
from absl import app, flags, logging
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from meta import provenance, smoke

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_RUN_DIR = flags.DEFINE_string("run_dir", None, "--out_dir of meta.train.", required=True)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/meta_curves", "For the picture and the figures.")
_NAME = flags.DEFINE_string("name", "meta_curves", "Of the picture and the figures.")
smoke.define()

_BINS = 20
_SUFFIX = "/meta_loss"


def read(directory):
    """Outer steps and meta-losses of each family: dict to two arrays."""
    events = EventAccumulator(directory, {"tensors": 0}).Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        if tag.endswith(_SUFFIX):
            pairs = [
                (e.step, tensor_util.make_ndarray(e.tensor_proto).item())
                for e in events.Tensors(tag)
            ]
            found[tag.removesuffix(_SUFFIX)] = np.array(pairs).T
    return found


def binned(curves):
    """Means over `_BINS` equal parts of the run, None where nothing was recorded: dict."""
    # A run that goes on from another one does not begin at zero.
    first = min(steps[0] for steps, _ in curves.values())
    last = max(steps[-1] for steps, _ in curves.values())
    edges = np.linspace(first - 1, last, _BINS + 1)
    means = {}
    for family, (steps, losses) in curves.items():
        parts = [losses[(steps > a) & (steps <= b)] for a, b in itertools.pairwise(edges)]
        means[family] = [float(part.mean()) if part.size else None for part in parts]
    return {"outer_steps": edges[1:].tolist(), "meta_loss": means}


def plot(figures, file):
    """Draws the curve of each family."""
    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for family, means in figures["meta_loss"].items():
        points = [
            (x, mean)
            for x, mean in zip(figures["outer_steps"], means, strict=True)
            if mean is not None
        ]
        axis.plot(*zip(*points, strict=True), label=family)
    axis.axhline(0.0, color="black", lw=0.8, ls="--")
    axis.set(xlabel="outer step", ylabel="score, mean over a problem (less is better)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", ncols=2)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    curves = read(os.path.join(_RUN_DIR.value, "summaries"))
    if not curves:
        raise app.UsageError(f"--run_dir={_RUN_DIR.value} has no summaries of families of tasks.")
    figures = binned(curves)
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    stem = os.path.join(_OUT_DIR.value, _NAME.value)
    provenance.write_results(f"{stem}.json", figures)
    plot(figures, f"{stem}.png")
    print(f"Picture: {stem}.png")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
