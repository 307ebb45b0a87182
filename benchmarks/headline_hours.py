"""What hours of meta-training bring: the headline's fraction of Adam's time, stage by stage.

python benchmarks/headline_hours.py --out_dir=benchmarks/results/headline

Reads what `headline.py` wrote, and from the metadata of the weights how long each stage took and
which weights it began with. Hours are those of one core.
"""

import json
import os

import matplotlib
from absl import app, flags, logging

from lopt_keras import pretrained, saved_model
from meta import provenance, smoke

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_RESULTS = "benchmarks/results/headline"
_HEADLINE = flags.DEFINE_string(
    "headline", f"{_RESULTS}/headline.json", "What `headline.py` wrote."
)
_STAGES = flags.DEFINE_list(
    "stages",
    [
        "default=default",
        f"first={_RESULTS}/first_stage",
        f"second={_RESULTS}/second_stage",
        f"third={_RESULTS}/third_stage",
        f"fourth={_RESULTS}/fourth_stage",
        f"learned={_RESULTS}/weights",
    ],
    "Stages in their order, as label=weights. Those that it did not run count for the hours only.",
)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/headline", "For the picture and the figures.")
smoke.define(stages=["default=default"])


def hours(paths):
    """Dict from label to hours: those of the stage, and of the stages that it began with."""
    found, by_sha = {}, {}
    for label, path in paths.items():
        metadata = saved_model.read_metadata(path)
        before = by_sha.get(metadata.get("initial_weights_sha256"))
        found[label] = 0.0 if before is None else before + metadata["seconds"] / 3600.0
        by_sha[metadata["sha256"]] = found[label]
    return found


def figures(summary, label):
    """The figures of a learned optimizer: dict, or None if it did not run."""
    own = next((value for name, value in summary.items() if name.startswith(f"{label}, ")), None)
    return own and {
        "seeds_to_target": own["seeds_to_target"],
        "steps": own["steps_to_target"],
        "fraction_of_adams_seconds": own["fraction_of_adams_seconds"],
        "best_validation_loss": own["best_validation_loss"],
    }


def plot(rows, file):
    """The fraction, and the validation loss, over hours: an axis each."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (label, own) in enumerate(rows.items()):
        fraction, loss = own["fraction_of_adams_seconds"], own["best_validation_loss"]
        style = {"color": f"C{i}", "marker": "o", "ms": 8, "ls": "", "label": label}
        if fraction["median"] is not None:
            axes[0].plot(own["hours"], fraction["median"], **style)
        axes[1].errorbar(own["hours"], loss["mean"], loss["std"], **style)
    axes[0].axhline(0.2, color="black", ls=":", label="target")
    axes[0].set(xlim=axes[1].get_xlim(), ylim=(0.0, 0.4))
    axes[0].set_ylabel("fraction of tuned Adam's seconds, median")
    axes[1].set(ylabel="best validation loss, mean and standard deviation")
    for axis in axes:
        axis.set(xlabel="hours of meta-training on one core")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    with open(_HEADLINE.value, encoding="utf-8") as f:
        summary = json.load(f)["summary"]
    pairs = (stage.partition("=") for stage in _STAGES.value)
    paths = {label: pretrained.find(path) for label, _, path in pairs}
    spent = hours(paths)
    found = {label: figures(summary, label) for label in paths}
    rows = {label: {"hours": spent[label], **own} for label, own in found.items() if own}
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    provenance.write_results(os.path.join(_OUT_DIR.value, "hours.json"), {"stages": rows})
    plot(rows, os.path.join(_OUT_DIR.value, "hours.png"))
    for label, own in rows.items():
        print(label, own)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
