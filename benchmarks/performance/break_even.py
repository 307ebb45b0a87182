"""From how many steps on the compilation of the default's step pays, measured and as assumed.

python benchmarks/performance/break_even.py --out_dir=benchmarks/results/performance

The first step and the later ones, with XLA and without, which take turns. What the first step
saves without XLA, over what each later step loses, is the number of steps to compare with
`lopt_keras.break_even.num_steps`.
"""

import math
import multiprocessing
import os
import statistics

import contenders
import models
import stopwatch
from absl import app, flags, logging

from lopt_keras import break_even
from meta import smoke

SHAPES = {
    "two_layers": lambda: [(64, 32), (32,), (32, 10), (10,)],
    "convnet": lambda: [
        *[(3, 3, 1, 16), (16,), (3, 3, 16, 32), (32,), (3, 3, 32, 32), (32,)],
        *[(512, 12), (12,)],
    ],
    "thirty_shapes": models.thirty_shapes,
    "small_transformer": lambda: models.transformer(2, 64, 128, 32),
    "transformer_of_4_layers": lambda: models.transformer(4, 128, 1000, 64),
    "mlp": models.mlp,
    "mobilenet_v2": models.mobilenet_v2,
    "transformer": models.transformer,
    "resnet50": models.resnet50,
}

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODELS = flags.DEFINE_list("models", list(SHAPES), f"Some of {list(SHAPES)}.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 30, "Later steps of each.", lower_bound=1)
_FIRST_STEPS = flags.DEFINE_integer("first_steps", 3, "First steps of each.", lower_bound=1)
smoke.define(models=["two_layers"], repetitions=2, first_steps=1)

_NAMES = ("default", "default" + contenders.UNCOMPILED)


def first_step(name, shapes):
    """Seconds of the first step. What TensorFlow does once in a process does not count."""
    contenders.step(name, *models.variables([(5, 7)]))()
    variables, gradients = models.variables(shapes)
    return stopwatch.once(lambda: contenders.step(name, variables, gradients)())["wall"]


def measure(shapes):
    """Seconds of the first step and milliseconds of a later one, of both; break-even: dict."""
    first = {name: [] for name in _NAMES}
    for _ in range(_FIRST_STEPS.value):
        for name in _NAMES:
            # In a process of its own, as nothing is compiled twice in one.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                first[name].append(pool.apply(first_step, (name, shapes)))
    steps = {name: contenders.step(name, *models.variables(shapes)) for name in _NAMES}
    for step in steps.values():
        step()
    later = stopwatch.interleaved(steps, _REPETITIONS.value, unit=1e6)
    compiled, uncompiled = _NAMES
    saved = statistics.median(first[compiled]) - statistics.median(first[uncompiled])
    lost = later[uncompiled]["wall"] - later[compiled]["wall"]
    return {
        "tensors": len(shapes),
        "parameters": sum(math.prod(shape) for shape in shapes),
        "first_seconds": first,
        "later_milliseconds": later,
        # None where the steps differ by less than they scatter.
        "break_even": round(1e3 * saved / lost) if lost > 0 else None,
        "assumed": break_even.num_steps(shapes),
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    found = {}
    for model in _MODELS.value:
        found[model] = measure(SHAPES[model]())
        print(model, found[model], flush=True)
    stopwatch.write(os.path.join(_OUT_DIR.value, "break_even.json"), {"models": found})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
