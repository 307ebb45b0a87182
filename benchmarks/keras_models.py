"""Trains real Keras models with a learned optimizer, with Adam, and with AdamW.

python benchmarks/keras_models.py --weights=out/run/export --out_dir=out/keras_models

Twelve models with `fit`, on bundled data: `benchmarks/model_zoo.py`. The learned optimizer runs as
written, and with the callbacks that tell it the horizon and validation losses. Adam runs at its
default learning rate and at the best of 9 half-decades, by validation loss at the end on a seed of
its own; AdamW with warm-up and cosine decay likewise. Their losses stay in OUT_DIR/adam.json: other
weights cost only their own runs.
"""

import itertools
import json
import os

import epoch_curves
import fitting
import keras
import model_zoo
import tqdm
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer, callbacks, pretrained, saved_model
from meta import provenance, smoke

_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights, or a SavedModel.")
_MODELS = flags.DEFINE_list("models", list(model_zoo.WORKLOADS), "Which models, by name.")
_RATES = flags.DEFINE_integer(
    "rates", fitting.NUM_RATES, "Learning rates to tune Adam over.", lower_bound=1
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each optimizer.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Epochs of each training. Default: the model's own.", lower_bound=1
)
_STATISTICS = flags.DEFINE_bool(
    "batch_statistics", False, "For all optimizers, new statistics of batch normalisation."
)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/keras_models", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_DEFAULT_RATE = 0.001
_LEARNED, _TOLD = "LearnedOptimizer()", "LearnedOptimizer(), with callbacks"
_DEFAULT, _TUNED, _COSINE = "Adam, default 0.001", "Adam, tuned", "AdamW with cosine decay, tuned"
_WARMUP = 0.05

flags.register_validator(
    "models",
    lambda names: names and set(names) <= set(model_zoo.WORKLOADS),
    f"must be some of {list(model_zoo.WORKLOADS)}.",
)
smoke.define(models=["raw_targets"], epochs=1, rates=1, seeds=2)


def adam(rate, steps):
    """Adam at a constant rate, whatever the number of steps."""
    del steps
    return keras.optimizers.Adam(rate)


def adamw(rate, steps):
    """AdamW with Keras's weight decay; its rate rises in the first steps, then falls to zero."""
    warmup = max(1, round(_WARMUP * steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=rate, warmup_steps=warmup
    )
    return keras.optimizers.AdamW(schedule)


# The names stand in the file of what has run.
_MAKERS = {"": adam, "AdamW, cosine, ": adamw}


def statistics(workload):
    """The callbacks that all optimizers get: list."""
    if not _STATISTICS.value:
        return []
    return [callbacks.BatchStatistics(workload.train, workload.batch_size)]


class BaselineRuns:
    """The trainings by hand-designed optimizers, kept in a file.

    Args:
        file: JSON.
    """

    def __init__(self, file):
        self._file, self._runs = file, {}
        if os.path.exists(file):
            with open(file, encoding="utf-8") as f:
                self._runs = json.load(f)

    def train(self, kind, name, workload, epochs, rate, seed):
        """As `fitting.train`, if the file lacks it; `kind` is one of `_MAKERS`."""
        key = f"{kind}{name}, {epochs} epochs, {rate:g}, seed {seed}, keras {keras.__version__}"
        key += ", batch statistics" if _STATISTICS.value else ""
        if key not in self._runs:
            steps = epochs * -(-fitting.num_examples(workload) // workload.batch_size)
            optimizer = _MAKERS[kind](rate, steps)
            self._runs[key] = fitting.train(optimizer, workload, epochs, seed, statistics(workload))
            provenance.write_json(self._file, self._runs)
        return self._runs[key]


def compete(name, baselines, bar):
    """Trains one model with each optimizer: `(trainings, rates)`, dicts from the optimizer."""
    workload = model_zoo.WORKLOADS[name](_DATA_DIR.value)
    epochs = _EPOCHS.value or workload.epochs
    seeds = range(_SEEDS.value)

    def trained(kind, rate, seeds):
        runs = []
        for seed in seeds:
            bar.set_description(f"{name}, {kind or 'Adam, '}{rate:g}")
            runs.append(baselines.train(kind, name, workload, epochs, rate, seed))
            bar.update()
        return runs

    def tuned(kind):
        return fitting.best_rate(
            lambda rate: trained(kind, rate, [fitting.TUNING_SEED])[0], _RATES.value
        )

    rates = {_TUNED: tuned(""), _COSINE: tuned("AdamW, cosine, ")}
    runs = {_LEARNED: [], _TOLD: [], _DEFAULT: trained("", _DEFAULT_RATE, seeds)}
    runs[_TUNED] = trained("", rates[_TUNED], seeds)
    runs[_COSINE] = trained("AdamW, cosine, ", rates[_COSINE], seeds)
    for seed in seeds:
        for label, told in ((_LEARNED, []), (_TOLD, [callbacks.Horizon, callbacks.ValidationLoss])):
            bar.set_description(f"{name}, {label}")
            optimizer = LearnedOptimizer(weights=_WEIGHTS.value)
            told = [*(make() for make in told), *statistics(workload)]
            own = fitting.train(optimizer, workload, epochs, seed, told)
            runs[label].append(own)
            bar.update()
    return runs, rates


def table(summaries, rates):
    """The losses at the end as Markdown, the lowest validation and test losses in bold."""
    lines = ["| model | optimizer | train loss | validation loss | test loss |", "|---" * 5 + "|"]
    for model, summary in summaries.items():
        for name, own in summary.items():
            label = f"{name} {rates[model][name]:g}" if name in rates[model] else name
            cells = []
            for split in ("train", "validation", "test"):
                text = f"{own[split]['mean']:.4f} ± {own[split]['std']:.4f}"
                lowest = min(other[split]["mean"] for other in summary.values())
                cells.append(f"**{text}**" if own[split]["mean"] == lowest else text)
            lines.append(f"| {model} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show_wins(summaries):
    """Prints on how many models the learned optimizer ends lower, by each loss."""
    for own, other in itertools.product((_LEARNED, _TOLD), (_DEFAULT, _TUNED, _COSINE)):
        counts = []
        for split in ("train", "validation", "test"):
            won = [s[own][split]["mean"] < s[other][split]["mean"] for s in summaries.values()]
            counts.append(f"{sum(won)} by {split} loss")
        print(f"{own}: lower than {other} on {', '.join(counts)}, of {len(summaries)} models.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        sha256 = saved_model.read_metadata(pretrained.find(_WEIGHTS.value))["sha256"]
    except ValueError as error:
        raise app.UsageError(f"--weights={_WEIGHTS.value}: {error}") from error
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    baselines = BaselineRuns(os.path.join(_OUT_DIR.value, "adam.json"))
    runs, rates = {}, {}
    fits = len(_MODELS.value) * (2 * _RATES.value + 5 * _SEEDS.value)
    with tqdm.tqdm(total=fits, unit="fit") as bar:
        for name in _MODELS.value:
            runs[name], rates[name] = compete(name, baselines, bar)
    summaries = {name: fitting.summarise(own) for name, own in runs.items()}
    content = {
        "weights_sha256": sha256,
        "learning_rates": rates,
        "summary": summaries,
        "runs": runs,
    }
    provenance.write_results(os.path.join(_OUT_DIR.value, "keras_models.json"), content)
    epoch_curves.plot_all(runs, 2, os.path.join(_OUT_DIR.value, "keras_models.png"))
    print(table(summaries, rates))
    show_wins(summaries)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
