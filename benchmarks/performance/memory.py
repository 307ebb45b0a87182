"""Bytes of state for each parameter, and the peak of resident memory in a step.

python benchmarks/performance/memory.py --out_dir=benchmarks/results/performance

Each optimizer has a process of its own. The peak is above what the process held after a
first step: what a step takes for a while, besides parameters, gradients and state.
"""

import ctypes
import math
import multiprocessing
import os

import contenders
import models
import stopwatch
from absl import app, flags, logging

from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODEL = flags.DEFINE_enum("model", "mlp", list(models.SHAPES), "Of models.py.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", [*contenders.BASELINES, *contenders.RULES], "Of contenders.py."
)
smoke.define(optimizers=["Adam"])

_SIZES = {"float32": 4, "bfloat16": 2, "int32": 4, "int64": 8}


def resident(field):
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as f:
        return 1024 * int(next(line for line in f if line.startswith(field)).split()[1])


def measure(name, shapes):
    """Bytes for each parameter: dict."""
    count = sum(math.prod(shape) for shape in shapes)
    variables, gradients = models.variables(shapes)
    optimizer = contenders.make(name)
    optimizer.build(variables)
    state = sum(_SIZES[v.dtype] * math.prod(v.shape) for v in optimizer.variables)
    del optimizer
    take = contenders.step(name, variables, gradients)
    take()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
        f.write("5")  # The peak is then counted from here.
    take()
    peak = resident("VmHWM") - before
    return {"state": round(state / count, 2), "peak_of_a_step": round(peak / count, 2)}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    shapes, found = models.SHAPES[_MODEL.value](), {}
    for name in _OPTIMIZERS.value:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(measure, (name, shapes))
        print(f"{name:>28}: {found[name]} bytes per parameter", flush=True)
    path = os.path.join(_OUT_DIR.value, "memory.json")
    stopwatch.write(path, {"model": _MODEL.value, "bytes_per_parameter": found})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
