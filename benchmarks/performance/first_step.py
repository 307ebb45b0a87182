"""Time from a new optimizer to the end of its first step: state, trace and compilation; memory.

python benchmarks/performance/first_step.py --out_dir=benchmarks/results/performance

Each in a process of its own, one after the other, as nothing is compiled twice in one. Once
more with XLA's persistent cache, filled by an earlier process, as when a program is run again.
"""

import math
import multiprocessing
import os
import statistics
import tempfile

import contenders
import models
import stopwatch
from absl import app, flags, logging

from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODELS = flags.DEFINE_list(
    "models",
    ["mlp", "transformer", "resnet50", "mobilenet_v2", "thirty_shapes"],
    "Of models.py.",
)
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", ["Adam", "default", "default/uncompiled"], "Of contenders.py."
)
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "First steps of each.", lower_bound=1)
smoke.define(models=["mlp"], optimizers=["Adam"], repetitions=1)


def first_step(name, shapes):
    """Seconds, wall and processor, and MiB that are left besides the optimizer's state: dict."""
    variables, gradients = models.variables(shapes)
    before, taken = stopwatch.resident(), []

    def take():
        taken.append(contenders.step(name, variables, gradients))
        taken[0]()

    seconds = stopwatch.once(take)
    state = sum(math.prod(v.shape) for v in taken[0].optimizer.variables) * 4 / 2**20
    return {**seconds, "mebibytes": round(stopwatch.resident() - before - state)}


def measure(shapes):
    """Of each optimizer, without and with a cache, the medians and all wall times: dict."""
    with tempfile.TemporaryDirectory() as cache:
        flags_of_cache = f"--tf_xla_persistent_cache_directory={cache}"
        for name in _OPTIMIZERS.value:
            in_process_of_its_own(name, shapes, flags_of_cache)
        found = {}
        for _ in range(_REPETITIONS.value):
            for name in _OPTIMIZERS.value:
                for suffix, xla_flags in (("", ""), (", cached", flags_of_cache)):
                    seconds = in_process_of_its_own(name, shapes, xla_flags)
                    found.setdefault(name + suffix, []).append(seconds)
                    print(name + suffix, seconds, flush=True)
    return {
        name: {
            **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
            "all": [run["wall"] for run in runs],
        }
        for name, runs in found.items()
    }


def in_process_of_its_own(name, shapes, xla_flags):
    """`first_step` in a new process, TensorFlow being given these flags of XLA."""
    os.environ["TF_XLA_FLAGS"] = xla_flags
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(first_step, (name, shapes))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = {model: measure(models.SHAPES[model]()) for model in _MODELS.value}
    path = os.path.join(_OUT_DIR.value, "first_step.json")
    stopwatch.write(path, {"seconds": results})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
