"""Trains a Keras MLP on mislabeled data, and corrects its threshold.

python benchmarks/mislabeled.py --out_dir=benchmarks/results/mislabeled

The training labels of the breast cancer table are flipped with rates
r0 (of class 0) and r1 (of class 1); test labels are clean. The model is never told.
Accuracy on the test labels, with the threshold 1/2 and with `label_noise.threshold`, for
several pairs of rates, after training with `LearnedOptimizer("digits")` and with Adam at its
default learning rate; once with the rates known, and once with r1 only, r0 from the
classes' share (`label_noise.flip_rates`). Source: Gish et al., arXiv 1909.09136.
"""

import os

import keras
import matplotlib
import numpy as np
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer
from meta import datasets, label_noise, provenance, smoke

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs (of 11 steps) of each training.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Trainings of each kind.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/mislabeled", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(epochs=1, seeds=2)

_RATES = ((0.0, 0.0), (0.1, 0.1), (0.0, 0.2), (0.0, 0.4), (0.1, 0.5), (0.3, 0.0), (0.4, 0.1))
_THRESHOLDS = ("threshold 1/2", "rates known", "r1 and class share known")
_OPTIMIZERS = {
    'LearnedOptimizer("digits")': lambda: LearnedOptimizer("digits"),
    "Adam, default": keras.optimizers.Adam,
}


def flip(labels, r0, r1, rng):
    """Labels of which some are wrong."""
    wrong = rng.random_sample(len(labels)) < np.where(labels == 1, r1, r0)
    return np.where(wrong, 1 - labels, labels)


def build_model(columns, seed):
    keras.utils.set_random_seed(seed)
    hidden = keras.layers.Dense(16, activation="relu")
    return keras.Sequential([keras.Input((columns,)), hidden, keras.layers.Dense(2)])


class Trainer:
    """A model that is trained again and again, each time from the start, compiled once."""

    def __init__(self, optimizer, dataset):
        self._dataset = dataset
        self._model = build_model(dataset.train.inputs.shape[1], seed=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._model.compile(optimizer, loss=loss)
        optimizer.build(self._model.trainable_variables)
        self._variables = optimizer.variables
        self._start = [keras.ops.convert_to_numpy(v) for v in self._variables]

    def noisy_posterior(self, labels, seed):
        """The probability of the label 1 on the test inputs, after a training on noisy labels."""
        inputs = self._dataset.train.inputs
        self._model.set_weights(build_model(inputs.shape[1], seed).get_weights())
        for variable, value in zip(self._variables, self._start, strict=True):
            variable.assign(value)
        self._model.fit(inputs, labels, batch_size=32, epochs=_EPOCHS.value, verbose=0)
        logits = self._model(self._dataset.test.inputs)
        return keras.ops.convert_to_numpy(keras.ops.softmax(logits))[:, 1]


def thresholds(dataset, labels, r0, r1):
    """Dict from each of `_THRESHOLDS` to a number."""
    class_prior = float(dataset.train.targets.mean())
    try:
        estimated = label_noise.flip_rates(class_prior, float(labels.mean()), r1=r1)
    except ValueError:  # Slightly fewer labels than the smallest rate explains.
        estimated = (0.0, r1)
    values = (0.5, label_noise.threshold(r0, r1), label_noise.threshold(*estimated))
    return dict(zip(_THRESHOLDS, values, strict=True))


def measure(trainer, dataset, r0, r1):
    """Accuracies on clean test labels: dict from each of `_THRESHOLDS` to one per seed."""
    accuracies = {name: [] for name in _THRESHOLDS}
    for seed in range(_SEEDS.value):
        labels = flip(dataset.train.targets, r0, r1, np.random.RandomState(seed))
        posterior = trainer.noisy_posterior(labels, seed)
        for name, threshold in thresholds(dataset, labels, r0, r1).items():
            right = (posterior > threshold) == dataset.test.targets
            accuracies[name].append(float(right.mean()))
    return accuracies


def plot(results, file):
    """Accuracy against flip rates: mean and range over seeds, an axis for each optimizer."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(12, 4.5), sharey=True, layout="constrained"
    )
    for axis, (optimizer, rows) in zip(axes, results.items(), strict=True):
        for i, name in enumerate(_THRESHOLDS):
            values = np.array([row["accuracy"][name] for row in rows])
            x, mean = np.arange(len(rows)) + 0.2 * (i - 1), values.mean(axis=1)
            spread = np.abs([values.min(axis=1) - mean, values.max(axis=1) - mean])
            axis.errorbar(x, mean, spread, fmt="o", label=name, color=f"C{i}", capsize=3)
        axis.set_xticks(range(len(rows)), [f"{row['r0']:g}, {row['r1']:g}" for row in rows])
        axis.set(title=optimizer, xlabel="flip rates r0, r1 of the training labels")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on clean test labels (mean and range over seeds)")
    axes[0].legend(loc="lower left")
    figure.suptitle("A Keras MLP on breast cancer with flipped training labels")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    dataset = datasets.load_table("breast_cancer", _DATA_DIR.value)
    results = {}
    for optimizer, make in _OPTIMIZERS.items():
        print(f"{optimizer}, test accuracy (mean ± standard deviation over seeds):")
        results[optimizer], trainer = [], Trainer(make(), dataset)
        for r0, r1 in _RATES:
            accuracy = measure(trainer, dataset, r0, r1)
            results[optimizer].append({"r0": r0, "r1": r1, "accuracy": accuracy})
            columns = (
                f"  {name} {np.mean(x):.3f} ± {np.std(x, ddof=1):.3f}"
                for name, x in accuracy.items()
            )
            print(f"  r0 {r0:g}, r1 {r1:g}:", *columns, flush=True)
    provenance.write_results(os.path.join(_OUT_DIR.value, "mislabeled.json"), results)
    picture = os.path.join(_OUT_DIR.value, "mislabeled.png")
    plot(results, picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
