"""Seconds of the learned optimizer in `fit`, against those of tuned Adam, on small Keras models.

python benchmarks/keras_seconds.py --out_dir=benchmarks/results/default/steady/keras_models

On a machine without other work. The learning rates of Adam are those that `keras_models.py`
found. The optimizers take turns, each in a process of its own for each model, so that all of
them compile what they need.
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

from lopt_keras import LearnedOptimizer
from meta import provenance, smoke

_OF_THE_DEFAULT = pathlib.Path(__file__).with_name("results") / "default" / "steady"
_RESULTS = flags.DEFINE_string(
    "results", str(_OF_THE_DEFAULT / "keras_models" / "keras_models.json"), "Of keras_models.py."
)
_MODELS = flags.DEFINE_list("models", list(model_zoo.WORKLOADS), "Which models, by name.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Of each training; as in keras_models.py.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
_OUT_DIR = flags.DEFINE_string("out_dir", "out/keras_models", "For the figures.")
smoke.define(models=["tabular"], epochs=2)


def train(name, rate, epochs, data_dir):
    """One fit, by Adam at a rate, or by the default if there is none: as `fitting.train`."""
    logging.set_verbosity(logging.WARNING)
    workload = model_zoo.WORKLOADS[name](data_dir)
    optimizer = LearnedOptimizer() if rate is None else keras.optimizers.Adam(rate)
    warm_up()
    return fitting.train(optimizer, workload, epochs or workload.epochs, seed=0)


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
    """The figures of both on one model: dict."""
    found = {}
    for label, own in (("adam", rate), ("learned", None)):
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            arguments = name, own, _EPOCHS.value, _DATA_DIR.value
            found[label] = pool.submit(train, *arguments).result()
    target = found["adam"]["validation"][-1]
    return {label: figures(training, target) for label, training in found.items()}


def is_sooner(found, compiled=True):
    """Whether the learned optimizer is sooner at tuned Adam's final validation loss.

    Args:
        found: from `compare`.
        compiled: False to count the first epoch as a later one: without compilation.
    """
    seconds = []
    for own in (found["learned"], found["adam"]):
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
    ratios = [f["learned"]["later_epoch"] / f["adam"]["later_epoch"] for f in found.values()]
    print(f"An epoch after the first: {np.median(ratios):.2f} times Adam's in the median.")
    for compiled, with_it in ((True, "with"), (False, "without")):
        sooner = sum(is_sooner(own, compiled) for own in found.values())
        print(
            f"Sooner at tuned Adam's final validation loss, {with_it} compilation: {sooner} of "
            f"{len(found)} models."
        )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
