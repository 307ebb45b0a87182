"""Trains real Keras models with a learned optimizer, and with Adam.

python benchmarks/keras_models.py --weights=out/run/export --out_dir=out/keras_models

Eight models with `fit`, on bundled data: `benchmarks/model_zoo.py`. Adam runs at its
default learning rate and at the best of 9 half-decades, by validation loss at the end on a
seed of its own. Adam's losses stay in OUT_DIR/adam.json: other weights cost only their own
runs.
"""

import json
import os

import epoch_curves
import fitting
import keras
import model_zoo
import numpy as np
import tqdm
from absl import app, flags, logging
from meta.training import run_directory

from lopt_keras import LearnedOptimizer, pretrained, saved_model

_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights, or a SavedModel.")
_MODELS = flags.DEFINE_list("models", list(model_zoo.WORKLOADS), "Which models, by name.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each optimizer.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Epochs of each training. Default: the model's own.", lower_bound=1
)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/keras_models", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_TUNING_SEED = 1000
_DEFAULT_RATE = 0.001
_LEARNED, _DEFAULT, _TUNED = "LearnedOptimizer()", "Adam, default 0.001", "Adam, tuned"

flags.register_validator(
    "models",
    lambda names: names and set(names) <= set(model_zoo.WORKLOADS),
    f"must be some of {list(model_zoo.WORKLOADS)}.",
)


class AdamRuns:
    """Adam's trainings, kept in a file.

    Args:
        file: JSON.
    """

    def __init__(self, file):
        self._file, self._runs = file, {}
        if os.path.exists(file):
            with open(file, encoding="utf-8") as f:
                self._runs = json.load(f)

    def train(self, name, workload, epochs, rate, seed):
        """As `fitting.train`, if the file lacks it."""
        key = f"{name}, {epochs} epochs, {rate:g}, seed {seed}, keras {keras.__version__}"
        if key not in self._runs:
            self._runs[key] = fitting.train(keras.optimizers.Adam(rate), workload, epochs, seed)
            run_directory.write_json(self._file, self._runs)
        return self._runs[key]


def compete(name, adam, bar):
    """Trains one model with each optimizer: dict from optimizer to trainings, and Adam's rate."""
    workload = model_zoo.WORKLOADS[name](_DATA_DIR.value)
    epochs = _EPOCHS.value or workload.epochs
    seeds = range(_SEEDS.value)

    def adams(rate, seeds):
        runs = []
        for seed in seeds:
            bar.set_description(f"{name}, Adam {rate:g}")
            runs.append(adam.train(name, workload, epochs, rate, seed))
            bar.update()
        return runs

    tuning = [adams(rate, [_TUNING_SEED])[0]["validation"][-1] for rate in fitting.ADAM_GRID]
    best = fitting.ADAM_GRID[int(np.nanargmin(tuning))]
    runs = {_LEARNED: [], _DEFAULT: adams(_DEFAULT_RATE, seeds), _TUNED: adams(best, seeds)}
    for seed in seeds:
        bar.set_description(f"{name}, learned")
        optimizer = LearnedOptimizer(weights=_WEIGHTS.value)
        runs[_LEARNED].append(fitting.train(optimizer, workload, epochs, seed))
        bar.update()
    return runs, best


def table(summaries, rates):
    """The losses at the end as Markdown, the lowest validation and test losses in bold."""
    lines = ["| model | optimizer | train loss | validation loss | test loss |", "|---" * 5 + "|"]
    for model, summary in summaries.items():
        for name, own in summary.items():
            label = f"{name} {rates[model]:g}" if name == _TUNED else name
            cells = []
            for split in ("train", "validation", "test"):
                text = f"{own[split]['mean']:.4f} ± {own[split]['std']:.4f}"
                lowest = min(other[split]["mean"] for other in summary.values())
                cells.append(f"**{text}**" if own[split]["mean"] == lowest else text)
            lines.append(f"| {model} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show_wins(summaries):
    """Prints on how many models the learned optimizer ends lower, by each loss."""
    for other in (_DEFAULT, _TUNED):
        counts = []
        for split in ("train", "validation", "test"):
            won = [s[_LEARNED][split]["mean"] < s[other][split]["mean"] for s in summaries.values()]
            counts.append(f"{sum(won)} by {split} loss")
        print(f"Lower than {other} on {', '.join(counts)}, of {len(summaries)} models.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    path = _WEIGHTS.value
    path = pretrained.path(path) if path in pretrained.list_pretrained() else path
    try:
        sha256 = saved_model.read_metadata(path)["sha256"]
    except ValueError as error:
        raise app.UsageError(f"--weights={_WEIGHTS.value}: {error}") from error
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    adam = AdamRuns(os.path.join(_OUT_DIR.value, "adam.json"))
    runs, rates = {}, {}
    fits = len(_MODELS.value) * (len(fitting.ADAM_GRID) + 3 * _SEEDS.value)
    with tqdm.tqdm(total=fits, unit="fit") as bar:
        for name in _MODELS.value:
            runs[name], rates[name] = compete(name, adam, bar)
    summaries = {name: fitting.summarise(own) for name, own in runs.items()}
    content = {
        "weights_sha256": sha256,
        "learning_rates": rates,
        "summary": summaries,
        "runs": runs,
    }
    run_directory.write_json(os.path.join(_OUT_DIR.value, "keras_models.json"), content)
    epoch_curves.plot_all(runs, 2, os.path.join(_OUT_DIR.value, "keras_models.png"))
    print(table(summaries, rates))
    show_wins(summaries)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
