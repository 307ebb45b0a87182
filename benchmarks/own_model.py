"""Trains one Keras model with the shipped optimizer and with Adam; then meta-trains for it.

python benchmarks/own_model.py --out_dir=out/own_model

First `fit` trains the model on fresh seeds with the weights that ship and with Adam, default
and tuned. Then meta-training goes on from those weights, for this model alone: it sees the
training and the validation data. Then `fit` trains with the new weights too, on the same
fresh seeds. A picture shows all, against epochs and seconds, whoever wins.

The models are small convnets on scikit-learn's 8x8 digits (`digits`, `convnet`), and an MLP on a
table of 108 examples with 35 for validation, too few to meta-train on (`wine`). Killed and run
again with the same flags, meta-training resumes.
"""

from export import command  # First: TensorFlow's messages to its developers stay away.

# isort: split
import os
import re
import shlex
import sys

import epoch_curves
import fitting
import keras
import model_zoo
import numpy as np
import tqdm
from absl import app, flags
from meta.training import run_directory
from meta.training.outer_loop import OuterLoop

import export
from lopt_keras import LearnedOptimizer, pretrained, rules, saved_model
from meta import datasets, estimators, tasks

_MODEL = flags.DEFINE_enum("model", "digits", ("digits", "convnet", "wine"), "Which model.")
_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights to begin with.")
_TRAINED = flags.DEFINE_string(
    "trained", ".*", "Regular expression of the entries of theta to train; others stay."
)
_ES_STDDEV = flags.DEFINE_float("es_stddev", 0.01, "Standard deviation of the perturbations.")
_OUTER_LEARNING_RATE = flags.DEFINE_float("outer_learning_rate", 1e-3, "Of the outer Adam.")
_NUM_OUTER_STEPS = flags.DEFINE_integer("num_outer_steps", 600, "Outer steps.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Trainings of each optimizer.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/own_model", "For the run and its figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_UNROLL_LENGTH = 30
_TUNING_SEED = 1000


def digits():
    """A convnet of 810 parameters on 8x8 digits."""

    def make():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(8, 3, 2, activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )

    data = datasets.load("digits", _DATA_DIR.value)
    return _workload(make, data, batch_size=64, epochs=10)


def convnet():
    """Two convolutions and two dense layers, 38,000 parameters, on 8x8 digits."""

    def make():
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

    data = datasets.load("digits", _DATA_DIR.value)
    return _workload(make, data, batch_size=64, epochs=10)


def wine():
    """An MLP on 13 measures of wines."""

    def make():
        return keras.Sequential(
            [
                keras.Input((13,)),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.Dense(3),
            ]
        )

    data = datasets.load_table("wine", _DATA_DIR.value)
    return _workload(make, data, batch_size=16, epochs=30)


def _workload(make, data, **fit):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    splits = {name: tuple(data.split(name)) for name in datasets.SPLITS}
    return model_zoo.Workload(make, loss, **splits, **fit)


def meta_train(own):
    """Meta-trains shipped weights on the model: an export's path, and the `OuterLoop`."""
    rule, theta, metadata = saved_model.read(pretrained.path(_WEIGHTS.value))
    rule = rules.get(rule)
    task = tasks.from_keras(
        own.make, own.loss, own.train, own.validation, batch_size=own.batch_size
    )
    # As many steps as `fit` takes, in whole unrolls.
    steps = own.epochs * -(-len(own.train[1]) // own.batch_size)
    estimator = estimators.get(
        "pes",
        rule,
        task,
        num_particles=8,
        unroll_length=_UNROLL_LENGTH,
        horizon=_UNROLL_LENGTH * -(-steps // _UNROLL_LENGTH),
        stddev=_ES_STDDEV.value,
        outer_split="validation",
        trained=[n for n in rule.theta_shapes() if re.fullmatch(_TRAINED.value, n)],
    )
    run = {
        "command": shlex.join(["python", "benchmarks/own_model.py", *sys.argv[1:]]),
        "flags": {
            flag.name: flag.value
            for flag in (
                _MODEL,
                _NUM_OUTER_STEPS,
                _WEIGHTS,
                _TRAINED,
                _ES_STDDEV,
                _OUTER_LEARNING_RATE,
            )
        },
        "rule": rules.serialize(rule),
        "seed": 0,
        "task": {"name": task.name, "config": task.get_config()},
        "initial_weights_sha256": metadata["sha256"],
    }
    run_directory.claim(_OUT_DIR.value, run)
    loop = OuterLoop(
        estimator,
        keras.optimizers.Adam(_OUTER_LEARNING_RATE.value),
        0,
        _OUT_DIR.value,
        initial_theta=theta,
    )
    loop.restore()
    loop.run(_NUM_OUTER_STEPS.value)
    weights = os.path.join(_OUT_DIR.value, "export")
    export.export_checkpoint(_OUT_DIR.value, weights, overwrite=True)
    return weights, loop


def fits(make, own, seeds):
    """Trainings by optimizers that a function makes: list."""
    return [fitting.train(make(), own, own.epochs, seed) for seed in tqdm.tqdm(seeds, leave=False)]


def compare(own):
    """The shipped weights and Adam on fresh seeds: dict from the name to a list of trainings."""
    print(f"Adam is tuned over {len(fitting.ADAM_GRID)} learning rates...")

    def adam(rate):
        return lambda: keras.optimizers.Adam(rate)

    tuning = [fits(adam(r), own, [_TUNING_SEED])[0]["validation"][-1] for r in fitting.ADAM_GRID]
    best = fitting.ADAM_GRID[int(np.nanargmin(tuning))]
    optimizers = {
        _shipped(): lambda: LearnedOptimizer(weights=_WEIGHTS.value),
        "Adam, default 0.001": adam(0.001),
        f"Adam, tuned {best:g}": adam(best),
    }
    runs = {}
    for name, make in optimizers.items():
        runs[name] = fits(make, own, range(_SEEDS.value))
        show({name: runs[name]})
    return runs


def _shipped():
    is_default = _WEIGHTS.value == "default"
    return "LearnedOptimizer()" if is_default else f"shipped weights, {_WEIGHTS.value}"


def show(runs):
    """Prints losses at the end and seconds of each optimizer."""
    for name, figures in fitting.summarise(runs).items():
        cells = [f"{k} {v['mean']:.4f} ± {v['std']:.4f}" for k, v in figures.items()]
        print(f"{name:>22}: {', '.join(cells)}")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    own = {"digits": digits, "convnet": convnet, "wine": wine}[_MODEL.value]()
    runs = compare(own)
    print(f"Meta-training for this model, from the weights {_WEIGHTS.value!r}...")
    try:
        weights, loop = meta_train(own)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print(f"Outer steps: {loop.seconds:.0f} s, compilation: {loop.compile_seconds:.0f} s.")
    tuned = {"meta-trained for it": fits(lambda: _of(weights), own, range(_SEEDS.value))}
    show(tuned)
    runs |= tuned
    content = {
        "meta_training_seconds": loop.seconds,
        "compile_seconds": loop.compile_seconds,
        "summary": fitting.summarise(runs),
        "runs": runs,
    }
    run_directory.write_json(os.path.join(_OUT_DIR.value, "own_model.json"), content)
    picture = os.path.join(_OUT_DIR.value, "own_model.png")
    epoch_curves.plot(runs, f"{_MODEL.value}, {_SEEDS.value} fresh seeds", picture)
    print(f"Picture: {picture}\nSavedModel: {weights}")


def _of(weights):
    return LearnedOptimizer(weights=weights)


if __name__ == "__main__":
    command.run(main)
