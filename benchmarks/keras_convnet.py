"""Trains a Keras convnet on the digits with a learned optimizer, and with Adam.

python benchmarks/keras_convnet.py --weights=out/run/export --out_dir=out/run

Adam runs at its default learning rate and at the best of 9 half-decades (by
validation loss at the end). The convnet is not among the tasks of meta-training.
"""

from export import command  # First: TensorFlow's messages to its developers stay away.

# isort: split
import os

import epoch_curves
import fitting
import model_zoo
from absl import app, flags

from lopt_keras import LearnedOptimizer
from meta import provenance, smoke

_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights, or a SavedModel.")
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of each training.", lower_bound=1)
_RATES = flags.DEFINE_integer(
    "rates", fitting.NUM_RATES, "Learning rates to tune Adam over.", lower_bound=1
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each optimizer.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/keras_convnet", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(epochs=1, rates=1, seeds=2)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    workload = model_zoo.SMALLER["convnet"](_DATA_DIR.value)
    optimizers = {
        "LearnedOptimizer()": lambda: LearnedOptimizer(weights=_WEIGHTS.value),
        **fitting.adams(workload, _EPOCHS.value, _RATES.value),
    }
    runs = fitting.compare(optimizers, workload, _EPOCHS.value, _SEEDS.value)
    provenance.write_results(os.path.join(_OUT_DIR.value, "keras_convnet.json"), runs)
    picture = os.path.join(_OUT_DIR.value, "keras_convnet.png")
    epoch_curves.plot(runs, "A Keras convnet on 8x8 digits", picture)
    print(f"Picture: {picture}")
    print(f"SavedModel: {_WEIGHTS.value}")


if __name__ == "__main__":
    command.run(main)
