"""Meta-trains for one Keras model of one's own, and says what it cost and gave.

python benchmarks/own_model.py --out_dir=out/own_model

A small convnet on scikit-learn's 8x8 digits, or with `--model=wine` an MLP on a table of
108 examples, with 35 for validation: too few. Meta-training starts from the weights that ship
and sees the training and the validation data; then `fit` trains the model on
fresh seeds with the weights before and after, and with Adam, default and tuned. Killed and
run again with the same flags, meta-training resumes.
"""

import os
import shlex
import sys

import epoch_curves
import fitting
import keras
import model_zoo
import numpy as np
from absl import app, flags, logging

import export
from lopt_keras import LearnedOptimizer, pretrained, rules, saved_model
from meta import datasets, estimators, run_directory, tasks
from meta.outer_loop import OuterLoop

_MODEL = flags.DEFINE_enum("model", "digits", ("digits", "wine"), "Which model.")
_NUM_OUTER_STEPS = flags.DEFINE_integer("num_outer_steps", 600, "Outer steps.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Trainings of each optimizer.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/own_model", "For the run and its figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_START = "digits"
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
    rule, theta, metadata = saved_model.read(pretrained.path(_START))
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
        outer_split="validation",
    )
    run = {
        "command": shlex.join(["python", "benchmarks/own_model.py", *sys.argv[1:]]),
        "flags": {"model": _MODEL.value, "num_outer_steps": _NUM_OUTER_STEPS.value},
        "rule": rules.serialize(rule),
        "seed": 0,
        "task": {"name": task.name, "config": task.get_config()},
        "initial_weights_sha256": metadata["sha256"],
    }
    run_directory.claim(_OUT_DIR.value, run)
    loop = OuterLoop(estimator, keras.optimizers.Adam(1e-3), 0, _OUT_DIR.value, initial_theta=theta)
    loop.restore()
    loop.run(_NUM_OUTER_STEPS.value)
    weights = os.path.join(_OUT_DIR.value, "export")
    export.export_checkpoint(_OUT_DIR.value, weights, overwrite=True)
    return weights, loop


def compare(own, weights):
    """Trainings on fresh seeds: dict from the name of an optimizer to a list."""

    def fit(make, seed):
        return fitting.train(make(), own, own.epochs, seed)

    def adam(rate):
        return lambda: keras.optimizers.Adam(rate)

    tuning = [fit(adam(r), _TUNING_SEED)["validation"][-1] for r in fitting.ADAM_GRID]
    best = fitting.ADAM_GRID[int(np.nanargmin(tuning))]
    optimizers = {
        f"shipped weights, {_START}": lambda: LearnedOptimizer(weights=_START),
        "meta-trained for it": lambda: LearnedOptimizer(weights=weights),
        "Adam, default 0.001": adam(0.001),
        f"Adam, tuned {best:g}": adam(best),
    }
    return {
        name: [fit(make, seed) for seed in range(_SEEDS.value)] for name, make in optimizers.items()
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    own = {"digits": digits, "wine": wine}[_MODEL.value]()
    try:
        weights, loop = meta_train(own)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print(f"Outer steps: {loop.seconds:.0f} s, compilation: {loop.compile_seconds:.0f} s.")
    runs = compare(own, weights)
    summary = fitting.summarise(runs)
    for name, figures in summary.items():
        cells = [f"{k} {v['mean']:.4f} ± {v['std']:.4f}" for k, v in figures.items()]
        print(f"{name:>22}: {', '.join(cells)}")
    content = {
        "meta_training_seconds": loop.seconds,
        "compile_seconds": loop.compile_seconds,
        "summary": summary,
        "runs": runs,
    }
    run_directory.write_json(os.path.join(_OUT_DIR.value, "own_model.json"), content)
    picture = os.path.join(_OUT_DIR.value, "own_model.png")
    epoch_curves.plot(runs, _MODEL.value, picture)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
