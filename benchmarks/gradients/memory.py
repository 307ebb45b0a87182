"""Memory and time of pathwise gradients, with and without recomputed segments.

python benchmarks/gradients/memory.py --out_dir=benchmarks/results/gradients

Unrolls of the default task (an MLP 64-32-10, 16 particles). Each setting
has a process of its own; its peak is that of the resident memory while the compiled
program runs, above what the process held before it was compiled; the program itself
is part of it. What compilation needed and gave back is not.
"""

import ctypes
import multiprocessing
import os
import time

import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import rules
from meta import estimators, provenance, random, smoke, tasks

_OUT_DIR = flags.DEFINE_string("out_dir", "out/gradients", "For the figures.")
_UNROLL_LENGTH = flags.DEFINE_integer("unroll_length", 200, "Inner steps.", lower_bound=1)
_SEGMENT_LENGTHS = flags.DEFINE_list(
    "segment_lengths", "50,14,5", "Of pathwise, besides the whole unroll."
)
smoke.define(unroll_length=4, segment_lengths=[])

_RUNS = 3


def resident(field):
    """VmRSS (now) or VmHWM (peak) of this process, in MiB."""
    with open("/proc/self/status", encoding="ascii") as f:
        return int(next(line for line in f if line.startswith(field)).split()[1]) / 1024


def measure(name, segment_length, unroll_length):
    """Compile time, time of an estimate and memory: dict of numbers."""
    rule = rules.FactoredMLP(step_mult=0.01, exp_mult=0.1)
    arguments = {"num_particles": 16, "unroll_length": unroll_length}
    if segment_length is not None:
        arguments["segment_length"] = segment_length
    estimator = estimators.get(name, rule, tasks.get("digits_mlp"), **arguments)
    theta = {key: tf.constant(value) for key, value in rule.init_theta().items()}
    state = estimator.init_state(theta, random.seed(0))
    step = tf.function(estimator.estimate, jit_compile=True, autograph=False)
    before, start = resident("VmRSS"), time.perf_counter()
    step(theta, state, random.seed(1), tf.constant(1))
    compile_seconds = time.perf_counter() - start
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
        f.write("5")  # The peak is then counted from here.
    start = time.process_time()
    for i in range(_RUNS):
        step(theta, state, random.seed(i), tf.constant(unroll_length))
    return {
        "compile_seconds": compile_seconds,
        "cpu_seconds": (time.process_time() - start) / _RUNS,
        "peak_mebibytes": resident("VmHWM") - before,
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    results = []
    segment_lengths = [None, *map(int, _SEGMENT_LENGTHS.value)]
    for name, segment_length in [("es", None), *(("pathwise", n) for n in segment_lengths)]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures = pool.apply(measure, (name, segment_length, _UNROLL_LENGTH.value))
        results.append({"estimator": name, "segment_length": segment_length, **figures})
        print(results[-1], flush=True)
    provenance.write_results(
        os.path.join(_OUT_DIR.value, "memory.json"),
        {"unroll_length": _UNROLL_LENGTH.value, "settings": results},
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
