"""The step of one large embedding with short rows: processor time and memory.

python benchmarks/performance/large_embedding.py --out_dir=benchmarks/results/performance

A step is bounded by memory traffic: twice the time of Adam's is near the least that a rule with as
much state and a scale for the whole tensor can have.
"""

import os
import time

import keras
import numpy as np
import stopwatch
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer
from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps that are timed.", lower_bound=1)
smoke.define(steps=1)

SHAPES = ((1_000_000, 8), (1_000_000, 16), (10_007, 10))
"""Rows that are shorter than a vector register, and a number of rows that is prime."""


def milliseconds(optimizer, shape, steps):
    """Processor time of each step: list."""
    layer = keras.layers.Embedding(*shape)
    layer.build((None,))
    variables = layer.trainable_variables
    optimizer.build(variables)
    gradient = 0.01 * tf.random.stateless_normal(shape, (0, 1))
    step = tf.function(lambda grad: optimizer.apply([grad], variables), autograph=False)
    step(gradient)  # Compiles.
    found = []
    for _ in range(steps):
        start = time.process_time()
        step(gradient)
        found.append(1e3 * (time.process_time() - start))
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    optimizers = {"Adam": keras.optimizers.Adam, "default": LearnedOptimizer}
    figures = {}
    for shape in SHAPES:
        own = {name: milliseconds(make(), shape, _STEPS.value) for name, make in optimizers.items()}
        medians = {name: float(np.median(values)) for name, values in own.items()}
        ratio = medians["default"] / medians["Adam"]
        print(f"{shape[0]} x {shape[1]}: ", end="")
        print(", ".join(f"{name} {ms:.1f} ms" for name, ms in medians.items()), f"({ratio:.1f})")
        figures[f"{shape[0]} x {shape[1]}"] = own
    stopwatch.write(os.path.join(_OUT_DIR.value, "large_embedding.json"), figures)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
