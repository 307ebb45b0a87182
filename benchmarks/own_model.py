"""Trains one Keras model with the shipped optimizer and with Adam; then meta-trains for it.

python benchmarks/own_model.py --out_dir=out/own_model

First `fit` trains the model on fresh seeds with the weights that ship and with Adam, default
and tuned. Then meta-training goes on from those weights, for this model alone: it sees the
training and the validation data. Then `fit` trains with the new weights too, on the same
fresh seeds. A picture shows all, against epochs and seconds, whoever wins.

The models are those of `model_zoo.SMALLER`: convnets and an MLP on scikit-learn's 8x8 digits, and
an MLP on a table of 108 examples with 35 for validation, too few to meta-train on (`wine`). Killed
and run again with the same flags, meta-training resumes.
"""

from export import command  # First: TensorFlow's messages to its developers stay away.

# isort: split
import os
import shlex
import sys

import epoch_curves
import fitting
import model_zoo
from absl import app, flags

from lopt_keras import LearnedOptimizer, pretrained, saved_model
from meta import provenance, smoke, tasks
from meta.training.config import MetaTrainingConfig
from meta.training.run import train

_MODEL = flags.DEFINE_enum("model", "digits", list(model_zoo.SMALLER), "Which model.")
_WEIGHTS = flags.DEFINE_string("weights", "default", "Shipped weights to begin with.")
_TRAINED = flags.DEFINE_string(
    "trained", ".*", "Regular expression of the entries of theta to train; others stay."
)
_ES_STDDEV = flags.DEFINE_float("es_stddev", 0.01, "Standard deviation of the perturbations.")
_OUTER_LEARNING_RATE = flags.DEFINE_float("outer_learning_rate", 1e-3, "Of the outer Adam.")
_NUM_OUTER_STEPS = flags.DEFINE_integer("num_outer_steps", 600, "Outer steps.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Epochs of each training. Default: the model's own.", lower_bound=1
)
_RATES = flags.DEFINE_integer(
    "rates", fitting.NUM_RATES, "Learning rates to tune Adam over.", lower_bound=1
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Trainings of each optimizer.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/own_model", "For the run and its figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(model="wine", epochs=1, rates=1, seeds=2, num_outer_steps=1)

_UNROLL_LENGTH = 30


def meta_train(own):
    """Meta-trains shipped weights on the workload: a `MetaTraining`."""
    carried, _, _ = saved_model.read(pretrained.find(_WEIGHTS.value))
    task = tasks.from_keras(
        own.make, own.loss, own.train, own.validation, batch_size=own.batch_size
    )
    # As many steps as `fit` takes, in whole unrolls.
    steps = own.epochs * -(-len(own.train[1]) // own.batch_size)
    deciding = (
        *(_MODEL, _EPOCHS, _NUM_OUTER_STEPS, _WEIGHTS, _TRAINED),
        *(_ES_STDDEV, _OUTER_LEARNING_RATE),
    )
    config = MetaTrainingConfig(
        _OUT_DIR.value,
        task=task,
        rule=carried,
        initial_weights=_WEIGHTS.value,
        num_outer_steps=_NUM_OUTER_STEPS.value,
        num_particles=8,
        unroll_length=_UNROLL_LENGTH,
        horizon=_UNROLL_LENGTH * -(-steps // _UNROLL_LENGTH),
        es_stddev=_ES_STDDEV.value,
        outer_learning_rate=_OUTER_LEARNING_RATE.value,
        trained=_TRAINED.value,
        command=shlex.join(["python", "benchmarks/own_model.py", *sys.argv[1:]]),
        flags={flag.name: flag.value for flag in deciding},
    )
    return train(config)


def compare(own):
    """The shipped weights and Adam on fresh seeds: dict from the name to a list of trainings."""
    is_default = _WEIGHTS.value == "default"
    name = "LearnedOptimizer()" if is_default else f"shipped weights, {_WEIGHTS.value}"
    optimizers = {
        name: lambda: LearnedOptimizer(weights=_WEIGHTS.value),
        **fitting.adams(own, own.epochs, _RATES.value),
    }
    return fitting.compare(optimizers, own, own.epochs, _SEEDS.value)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    own = model_zoo.SMALLER[_MODEL.value](_DATA_DIR.value)
    own = own._replace(epochs=_EPOCHS.value or own.epochs)
    runs = compare(own)
    print(f"Meta-training for this model, from the weights {_WEIGHTS.value!r}...")
    try:
        training = meta_train(own)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    weights, loop = training.export_dir, training.loop
    tuned = {"meta-trained for it": lambda: LearnedOptimizer(weights=weights)}
    runs |= fitting.compare(tuned, own, own.epochs, _SEEDS.value)
    content = {
        "meta_training_seconds": loop.seconds,
        "compile_seconds": loop.compile_seconds,
        "summary": fitting.summarise(runs),
        "runs": runs,
    }
    provenance.write_results(os.path.join(_OUT_DIR.value, "own_model.json"), content)
    picture = os.path.join(_OUT_DIR.value, "own_model.png")
    epoch_curves.plot(runs, f"{_MODEL.value}, {_SEEDS.value} fresh seeds", picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    command.run(main)
