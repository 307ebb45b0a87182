"""Timing of functions side by side, memory, and the JSON of what was found."""

import ctypes
import gc
import os
import platform
import time

import numpy as np


def interleaved(functions, repetitions, unit=1.0):
    """Calls all functions in turn, so that what else the machine does hits all alike.

    Args:
        functions: dict from name to a function without arguments, which ends when its
            work is done.
        repetitions: calls of each.
        unit: divides the times, such as the number of parameters; a number or a dict.

    Returns:
        Dict from name to a dict: the median of the wall time (`wall`), its quartiles,
        and the median of the processor time of all threads (`cpu`), in nanoseconds.
    """
    times = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = time.perf_counter_ns(), time.process_time_ns()
            function()
            end = time.perf_counter_ns(), time.process_time_ns()
            times[name].append(np.subtract(end, start))
    return {
        name: summary(np.array(pairs) / (unit[name] if isinstance(unit, dict) else unit))
        for name, pairs in times.items()
    }


def summary(pairs):
    """Of an array `[repetitions, 2]` of wall and processor times."""
    low, median, high = np.percentile(pairs[:, 0], (25, 50, 75))
    numbers = {"wall": median, "quartiles": (low, high), "cpu": np.median(pairs[:, 1])}
    return {key: np.round(value, 2).tolist() for key, value in numbers.items()}


def once(function):
    """Wall and processor seconds of one call: dict."""
    start = time.perf_counter(), time.process_time()
    function()
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    return {"wall": round(wall, 2), "cpu": round(cpu, 2)}


def resident():
    """Resident memory of this process, in MiB, without what is free in the heap."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/status", encoding="ascii") as f:
        return int(next(line for line in f if line.startswith("VmRSS")).split()[1]) / 1024


def write(path, figures):
    """JSON of figures, with the program that made them and what it ran on."""
    from meta import provenance  # Not above: what is timed and weighed has no meta-training in it.

    machine = {
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average_of_5_minutes": round(os.getloadavg()[1], 1),
    }
    provenance.write_results(path, {**machine, **figures})
    print(f"Figures: {path}")


def _processor():
    """The model's name, and the vector instructions that tell it from others."""
    with open("/proc/cpuinfo", encoding="ascii") as f:
        lines = dict(line.split(":", 1) for line in f if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    vectors = [flag for flag in lines.get("flags", "").split() if flag in ("avx2", "avx512f")]
    return " ".join([lines.get("model name", platform.processor()), *vectors])
