"""Meta-training on two cores: one process, and two workers.

python benchmarks/distributed/speed.py --out_dir=benchmarks/results/distributed

The same work in each outer step, two shards, in three ways: one process on one core, one process
on both, and two workers. And as one process would do without shards: one shard with twice the
particles. Each way is a process of its own, measured from its start: seconds to the end of the
first outer step, outer steps per second once all programs are compiled, memory, and the processor
time of a step in all processes, which does not depend on other programs.
"""

import multiprocessing
import os
import queue
import tempfile
import time

import numpy as np
import runs
from absl import app, flags, logging

from meta import provenance, smoke
from meta.tasks.mixture import Mixture
from meta.training import run
from meta.training.config import MetaTrainingConfig

_OUT_DIR = flags.DEFINE_string("out_dir", "out/distributed", "For the figures.")
_STEPS = flags.DEFINE_integer("steps", 40, "Outer steps on one task.", lower_bound=2)
_MIXTURE_STEPS = flags.DEFINE_integer("mixture_steps", 40, "On several.", lower_bound=2)
_PARTICLES = flags.DEFINE_integer("particles", 32, "Of a shard.", lower_bound=2)
_TASKS = flags.DEFINE_integer("tasks", 6, "Of the mixture, of four programs.", lower_bound=2)
_WAYS = flags.DEFINE_list("ways", [], "Names of the ways. Default: all.")
_WORKS = flags.DEFINE_list("works", [], "Names of the works. Default: all.")
smoke.define(steps=3, mixture_steps=20, particles=2, ways=["one core"], works=["one task"])

WAYS = {
    "one core": {"cores": 1, "num_shards": 2, "num_workers": 0},
    "both cores, one shard": {"cores": 2, "num_shards": 1, "num_workers": 0},
    "both cores, two shards": {"cores": 2, "num_shards": 2, "num_workers": 0},
    "two workers": {"cores": 2, "num_shards": 2, "num_workers": 2},
}
_ONE_CORE = next(iter(WAYS))


def works():
    """What is done: dict from name to arguments of `MetaTrainingConfig`."""
    one = {"task": "digits_mlp", "rule": "factored_mlp", "num_outer_steps": _STEPS.value}
    own = {"rule": "mlp", "rule_config": {"hidden_size": 4, "hidden_layers": 1}}
    mixture = Mixture({"quadratic": 1.0, "image_mlp": 1.0}, _TASKS.value, milliseconds=0.1)
    several = {"tasks": mixture, **own, "num_outer_steps": _MIXTURE_STEPS.value}
    return {"one task": one, "mixture": several}


def measure(config, start, results):
    """In a process of its own: puts the figures of a run into a queue.

    Args:
        config: `MetaTrainingConfig`.
        start: time at which the process was started.
        results: queue.
    """
    with run.started(config) as training:
        crew, times, used, compiles = training.loop.crew, [], [], []
        estimates = crew.estimates
        last = config.num_outer_steps - 1
        first = last // 2  # By then most programs are compiled.

        def timed(theta, units):
            if len(times) in (first, last):
                used.append(runs.processor_seconds(os.getpid()))
            times.append(time.monotonic())
            made = estimates(theta, units)
            compiles.append(any(estimated.is_new for estimated in made))
            return made

        crew.estimates = timed
        training.loop.run(config.num_outer_steps)
        memory = [peak_memory(pid) for pid in (os.getpid(), *training.processes)]
    # But for the last step, which ends with a checkpoint.
    steps = ~np.array(compiles[:-1])
    seconds = np.diff(times)[steps]
    compiled_last = np.flatnonzero(compiles[:-1])[-1]
    results.put(
        {
            "seconds_to_first_step": round(times[1] - start, 2),
            "seconds_to_last_program": round(times[compiled_last + 1] - start, 2),
            "steps": len(seconds),
            "steps_per_second": round(len(seconds) / float(seconds.sum()), 3),
            "milliseconds_quartiles": np.percentile(1e3 * seconds, (25, 50, 75)).round(1).tolist(),
            "processor_milliseconds_of_a_step": round(
                1e3 * (used[1] - used[0]) / (last - first), 1
            ),
            "mebibytes": memory,
        }
    )


def peak_memory(pid):
    """Of a process, MiB, as Linux tells."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        (line,) = (line for line in f if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def measured(folder, way, work):
    """The figures of a work done in a way: dict."""
    cores = sorted(os.sched_getaffinity(0))
    particles = _PARTICLES.value * 2 // way["num_shards"]
    common = {name: runs.SETTING[name] for name in ("estimator", "unroll_length", "horizon")}
    arguments = {"out_dir": folder, **common, **work, "num_particles": particles}
    arguments |= {name: way[name] for name in ("num_shards", "num_workers")}
    config = MetaTrainingConfig(**arguments)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    # Before it starts: TensorFlow has a thread for each core that it sees then.
    os.sched_setaffinity(0, cores[: way["cores"]])
    try:
        child = context.Process(target=measure, args=(config, time.monotonic(), results))
        child.start()
    finally:
        os.sched_setaffinity(0, cores)
    while True:
        try:
            found = results.get(timeout=0.2)
        except queue.Empty:
            if not child.is_alive():
                raise RuntimeError("The measured process has ended without a result.") from None
        else:
            child.join()
            return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    ways = _WAYS.value or list(WAYS)
    if len(os.sched_getaffinity(0)) < max(WAYS[way]["cores"] for way in ways):
        raise app.UsageError("Two cores are compared with one. This process may use one only.")
    figures = {}
    for name in _WORKS.value or works():
        own = figures[name] = {}
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                own[way] = measured(folder, WAYS[way], works()[name])
            if _ONE_CORE in own:
                speed = own[way]["steps_per_second"] / own[_ONE_CORE]["steps_per_second"]
                own[way]["times_one_core"] = round(speed, 3)
            print(name, way, own[way], flush=True)
            provenance.write_results(os.path.join(_OUT_DIR.value, "speed.json"), figures)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
