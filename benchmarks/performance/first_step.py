"""Time from a new optimizer to the end of its first step: state, trace and compilation.

python benchmarks/performance/first_step.py --out_dir=benchmarks/results/performance

Each in a process of its own, one after the other, as nothing is compiled twice in one.
"""

import multiprocessing
import os
import statistics

import contenders
import models
import stopwatch
from absl import app, flags, logging

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODELS = flags.DEFINE_list("models", ["mlp", "resnet50", "transformer"], "Of models.py.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", ["Adam", "factored_mlp/8"], "Of contenders.py.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "First steps of each.", lower_bound=1)


def first_step(name, shapes):
    """Seconds, wall and processor: dict."""
    variables, gradients = models.variables(shapes)
    return stopwatch.once(lambda: contenders.step(name, variables, gradients)())


def measure(shapes):
    """Of each optimizer, the medians over all repetitions, and all wall times."""
    found = {name: [] for name in _OPTIMIZERS.value}
    for _ in range(_REPETITIONS.value):
        for name in found:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name].append(pool.apply(first_step, (name, shapes)))
            print(name, found[name][-1], flush=True)
    return {
        name: {
            "wall": statistics.median(run["wall"] for run in runs),
            "cpu": statistics.median(run["cpu"] for run in runs),
            "all": [run["wall"] for run in runs],
        }
        for name, runs in found.items()
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = {model: measure(models.SHAPES[model]()) for model in _MODELS.value}
    path = os.path.join(_OUT_DIR.value, "first_step.json")
    stopwatch.write(path, {"seconds": results})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
