"""Time of an optimizer's step for each parameter, against Keras's Adam and AdamW.

python benchmarks/performance/optimizer_step.py --out_dir=benchmarks/results/performance

All steps are taken in turn on variables of their own, with random gradients. The slow
rules take none on the large models. The large ones take 1.5 GiB of memory an optimizer.
"""

import math
import os
import warnings

import contenders
import models
import stopwatch
from absl import app, flags, logging

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODELS = flags.DEFINE_list("models", list(models.SHAPES), f"Some of {list(models.SHAPES)}.")
_RULES = flags.DEFINE_list("rules", None, "Only these, of contenders.py.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "About how long to measure each model.")
_SLOW = ("hierarchical", "recurrent", "orthogonal")
_LARGE, _MOST_REPETITIONS = 5_000_000, 50


def measure(shapes):
    """Nanoseconds for each parameter, of each optimizer: dict from name to dict."""
    count = sum(math.prod(shape) for shape in shapes)
    names = [name for name in contenders.RULES if _is_wanted(name, count)]
    steps = {}
    for name in (*contenders.BASELINES, *names):
        steps[name] = contenders.step(name, *models.variables(shapes))
        print(f"{name:>28}, first step: {stopwatch.once(steps[name])} s", flush=True)
    one_round = sum(stopwatch.once(step)["wall"] for step in steps.values())
    repetitions = max(5, min(_MOST_REPETITIONS, int(_SECONDS.value / max(one_round, 0.01))))
    figures = stopwatch.interleaved(steps, repetitions, unit=count)
    return {"parameters": count, "repetitions": repetitions, "nanoseconds": figures}


def _is_wanted(name, count):
    if _RULES.value is not None:
        return name in _RULES.value
    return count < _LARGE or not any(slow in name for slow in _SLOW)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    warnings.filterwarnings("ignore", message=".*makes use of.*")
    for model in _MODELS.value:
        found = measure(models.SHAPES[model]())
        for name, figures in found["nanoseconds"].items():
            print(f"{model:>12} {name:>28}: {figures} ns per parameter", flush=True)
        stopwatch.write(os.path.join(_OUT_DIR.value, f"optimizer_step_{model}.json"), found)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
