"""What the optimizer adds to a whole training step of `fit`, in percent.

python benchmarks/performance/fit_step.py --out_dir=benchmarks/results/performance

A convnet on 32x32 images and a small transformer on text, batches of 32, random data.
`model.train_on_batch` runs the very step that `fit` does. Each optimizer has a model of
its own, and they take turns. The overhead is against the same model under plain SGD.
"""

import os

import contenders
import keras
import numpy as np
import stopwatch
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer
from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 30, "Steps of each.", lower_bound=2)
_MODELS = flags.DEFINE_list("models", ["convnet", "transformer"], "Which of both.")
smoke.define(repetitions=2, models=["convnet"])

_BATCH, _VOCABULARY, _LENGTH, _WIDTH = 32, 512, 64, 128


def convnet():
    """A model and a batch for it."""
    layers = [keras.Input((32, 32, 3))]
    for filters in (32, 64, 128):
        layers += [keras.layers.Conv2D(filters, 3, padding="same", activation="relu")]
        layers += [keras.layers.BatchNormalization(), keras.layers.MaxPooling2D()]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_BATCH, 32, 32, 3), dtype="float32")
    return model, x, rng.integers(10, size=_BATCH)


def transformer():
    """A model and a batch for it."""
    tokens = keras.Input((_LENGTH,), dtype="int32")
    x = keras.layers.Embedding(_VOCABULARY, _WIDTH)(tokens)
    for _ in range(2):
        y = keras.layers.LayerNormalization()(x)
        attention = keras.layers.MultiHeadAttention(4, _WIDTH // 4)
        x = x + attention(y, y, use_causal_mask=True)
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * _WIDTH, activation="gelu")(y)
        x = x + keras.layers.Dense(_WIDTH)(y)
    model = keras.Model(tokens, keras.layers.Dense(_VOCABULARY)(x))
    text = np.random.default_rng(0).integers(_VOCABULARY, size=(_BATCH, _LENGTH + 1))
    return model, text[:, :-1], text[:, 1:]


def step(build, optimizer):
    """A function that takes one training step, and the number of parameters."""
    keras.utils.set_random_seed(0)
    model, x, y = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return lambda: model.train_on_batch(x, y), model.count_params()


MODELS = {"convnet": convnet, "transformer": transformer}
"""By name, functions that make a model and a batch for it."""


def measure(build):
    """Milliseconds of a step with each optimizer, and what it adds to that of SGD."""
    optimizers = {
        "SGD": keras.optimizers.SGD(),
        **{k: v() for k, v in contenders.BASELINES.items()},
    }
    optimizers["LearnedOptimizer"] = LearnedOptimizer()
    steps = {}
    for name, optimizer in optimizers.items():
        steps[name], count = step(build, optimizer)
        print(f"{name:>20}, first step: {stopwatch.once(steps[name])} s", flush=True)
    stopwatch.interleaved(steps, 2)
    figures = stopwatch.interleaved(steps, _REPETITIONS.value, unit=1e6)
    plain = figures["SGD"]["wall"]
    percent = {name: round(100 * (x["wall"] / plain - 1), 1) for name, x in figures.items()}
    print(f"{figures}\nOverhead in percent: {percent}", flush=True)
    return {"parameters": count, "milliseconds": figures, "overhead_percent": percent}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = {name: measure(MODELS[name]) for name in _MODELS.value}
    stopwatch.write(os.path.join(_OUT_DIR.value, "fit_step.json"), {"models": results})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
