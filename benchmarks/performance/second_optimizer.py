"""What each of several optimizers adds, one after the other in one process: seconds and memory.

python benchmarks/performance/second_optimizer.py --out_dir=benchmarks/results/performance

Each trains a small model of its own for two steps, after `keras.backend.clear_session()`.
"""

import itertools
import os
import time

import keras
import numpy as np
import stopwatch
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer
from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_COUNT = flags.DEFINE_integer("count", 10, "How many optimizers.", lower_bound=1)
smoke.define(count=1)


def measure(make):
    """Seconds of `fit` and MiB afterwards, one after the other: lists."""
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 20)), rng.random((64, 4))
    seconds, memory = [], [round(stopwatch.resident())]
    for _ in range(_COUNT.value):
        keras.backend.clear_session()
        layers = [keras.Input((20,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(4)]
        model = keras.Sequential(layers)
        start = time.perf_counter()
        model.compile(make(), loss="mse")
        model.fit(x, y, verbose=0)
        seconds.append(round(time.perf_counter() - start, 2))
        del model
        memory.append(round(stopwatch.resident()))
    return {
        "seconds": seconds,
        "mebibytes_more": [b - a for a, b in itertools.pairwise(memory)],
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    found = {}
    for name, make in (("Adam", keras.optimizers.Adam), ("default", LearnedOptimizer)):
        found[name] = measure(make)
        print(name, found[name], flush=True)
    stopwatch.write(os.path.join(_OUT_DIR.value, "second_optimizer.json"), found)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
