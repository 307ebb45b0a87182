"""Trains a Keras convnet on the digits with a learned optimizer, and with Adam.

python benchmarks/keras_convnet.py --weights=out/run/export --out_dir=out/run

Adam runs at its default learning rate and at the best of 9 half-decades (by
validation loss at the end). The convnet is not among the tasks of meta-training.
"""

from export import command  # First: TensorFlow's messages to its developers stay away.

# isort: split
import json
import os

import epoch_curves
import keras
import numpy as np
from absl import app, flags

from lopt_keras import LearnedOptimizer
from meta import datasets

_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights, or a SavedModel.")
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of each training.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each optimizer.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/keras_convnet", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_TUNING_SEED = 1000
_ADAM_GRID = 10.0 ** np.arange(-4.5, 0.0, 0.5)


def build_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def train(optimizer, dataset, seed):
    """Train and validation loss of each epoch of a fit, and the test loss at its end."""
    keras.utils.set_random_seed(seed)
    model = build_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    history = model.fit(
        *dataset.train,
        validation_data=tuple(dataset.validation),
        batch_size=64,
        epochs=_EPOCHS.value,
        verbose=0,
    ).history
    test_loss = model.evaluate(*dataset.test, batch_size=300, verbose=0)
    return {"train": history["loss"], "validation": history["val_loss"], "test": test_loss}


def tune_adam(dataset):
    final = [
        train(keras.optimizers.Adam(float(rate)), dataset, _TUNING_SEED)["validation"][-1]
        for rate in _ADAM_GRID
    ]
    return float(_ADAM_GRID[np.nanargmin(final)])


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    dataset = datasets.load("digits", _DATA_DIR.value)
    print("Tuning Adam over 9 learning rates...")
    best = tune_adam(dataset)
    optimizers = {
        "LearnedOptimizer()": lambda: LearnedOptimizer(weights=_WEIGHTS.value),
        "Adam, default 0.001": keras.optimizers.Adam,
        f"Adam, tuned {best:.2g}": lambda: keras.optimizers.Adam(best),
    }
    runs = {}
    for name, make in optimizers.items():
        runs[name] = [train(make(), dataset, seed) for seed in range(_SEEDS.value)]
        print(f"{name:>22}, final loss (mean ± standard deviation over seeds):", end="")
        for split in ("train", "validation", "test"):
            final = [np.ravel(run[split])[-1] for run in runs[name]]
            print(f"  {split} {np.mean(final):.4f} ± {np.std(final, ddof=1):.4f}", end="")
        print()
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    with open(os.path.join(_OUT_DIR.value, "keras_convnet.json"), "w", encoding="utf-8") as f:
        json.dump(runs, f, indent=1)
    picture = os.path.join(_OUT_DIR.value, "keras_convnet.png")
    epoch_curves.plot(runs, "A Keras convnet on 8x8 digits", picture)
    print(f"Picture: {picture}")
    print(f"SavedModel: {_WEIGHTS.value}")


if __name__ == "__main__":
    command.run(main)
