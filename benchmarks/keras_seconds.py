"""Seconds of the learned optimizer in `fit`, against those of tuned Adam, on small Keras models.

python benchmarks/keras_seconds.py --out_dir=benchmarks/results/default/wide/keras_models

On a machine without other work. The learning rates of Adam are those that `keras_models.py`
found. The learned optimizer runs as written, and with the callbacks, of which one leaves XLA out of
short trainings. All take turns, each in a process of its own for each model, so that they compile
what they need.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib

import fitting
import keras
import model_zoo
import numpy as np
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer, callbacks
from meta import provenance, smoke

LEARNED = {"learned": "LearnedOptimizer()", "told": "With callbacks"}
"""The learned optimizers by their names in the results."""

_OF_THE_DEFAULT = pathlib.Path(__file__).with_name("results") / "default" / "sized"
_RESULTS = flags.DEFINE_string(
    "results", str(_OF_THE_DEFAULT / "keras_models" / "keras_models.json"), "Of keras_models.py."
)
_MODELS = flags.DEFINE_list("models", list(model_zoo.WORKLOADS), "Which models, by name.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Of each training; as in keras_models.py.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
_OUT_DIR = flags.DEFINE_string("out_dir", "out/keras_models", "For the figures.")
smoke.define(models=["tabular"], epochs=2)


def train(name, contender, rate, epochs, data_dir):
    """One fit, as `fitting.train`. `rate` is that of Adam."""
    logging.set_verbosity(logging.WARNING)
    workload = model_zoo.WORKLOADS[name](data_dir)
    optimizer = keras.optimizers.Adam(rate) if contender == "adam" else LearnedOptimizer()
    told = [callbacks.Horizon(), callbacks.ValidationLoss()] if contender == "told" else []
    warm_up()
    return fitting.train(optimizer, workload, epochs or workload.epochs, 0, told)


def warm_up():
    """What every process pays for its first model, whatever the optimizer."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)


def seconds_to(training, target):
    """Seconds to the end of the first epoch with such a validation loss, or None."""
    reached = np.flatnonzero(np.asarray(training["validation"]) <= target)
    return training["epoch_seconds"][reached[0]] if reached.size else None


def figures(training, target):
    """Dict of seconds."""
    seconds = training["epoch_seconds"]
    return {
        "first_epoch": round(seconds[0], 2),
        "later_epoch": round(float(np.median(np.diff(seconds))), 3),
        "to_target": seconds_to(training, target),
        "all": seconds[-1],
    }


def compare(name, rate):
    """The figures of all contenders on one model: dict."""
    found = {}
    for contender in ("adam", *LEARNED):
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            arguments = name, contender, rate, _EPOCHS.value, _DATA_DIR.value
            found[contender] = pool.submit(train, *arguments).result()
    target = found["adam"]["validation"][-1]
    return {label: figures(training, target) for label, training in found.items()}


def is_sooner(found, contender, compiled=True):
    """Whether a learned optimizer is sooner at tuned Adam's final validation loss.

    Args:
        found: from `compare`.
        contender: of `LEARNED`.
        compiled: False to count the first epoch as a later one: without compilation.
    """
    seconds = []
    for own in (found[contender], found["adam"]):
        without = 0.0 if compiled else own["first_epoch"] - own["later_epoch"]
        seconds.append(np.inf if own["to_target"] is None else own["to_target"] - without)
    return seconds[0] < seconds[1]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    with open(_RESULTS.value, encoding="utf-8") as f:
        rates = json.load(f)["learning_rates"]
    found = {}
    for name in _MODELS.value:
        found[name] = compare(name, rates[name]["Adam, tuned"])
        print(name, found[name], flush=True)
        path = os.path.join(_OUT_DIR.value, "keras_seconds.json")
        provenance.write_results(path, {"models": found})
    for contender, name in LEARNED.items():
        ratios = [f[contender]["later_epoch"] / f["adam"]["later_epoch"] for f in found.values()]
        print(
            f"{name}: an epoch after the first {np.median(ratios):.2f} times Adam's in the median."
        )
        for compiled, with_it in ((True, "with"), (False, "without")):
            sooner = sum(is_sooner(own, contender, compiled) for own in found.values())
            print(
                f"{name}: sooner at tuned Adam's final validation loss, {with_it} compilation, on "
                f"{sooner} of {len(found)} models."
            )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
