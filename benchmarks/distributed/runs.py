"""A small meta-training, its digest, and the processes that belong to it."""

import contextlib
import hashlib
import logging
import os
import pathlib
import signal
import threading
import time

from meta.training.config import MetaTrainingConfig

SETTING = {
    "task": "quadratic",
    "rule": "sgd",
    "estimator": "pes",
    "num_particles": 32,
    "unroll_length": 20,
    "horizon": 100,
    "checkpoint_every": 20,
}
"""Arguments of `MetaTrainingConfig`."""

_TRIES = 5
"""To start Ray."""

_LATEST = 0.1
"""Seconds after the beginning of an outer step in which something happens to a worker."""


def config(out_dir, steps, shards, num_workers, **others):
    """The `MetaTrainingConfig` of a run."""
    numbers = {"num_outer_steps": steps, "num_shards": shards, "num_workers": num_workers}
    return MetaTrainingConfig(out_dir, **{**SETTING, **numbers, **others})


def times_of_steps(training):
    """A list to which the seconds of each outer step come, but for the last one."""
    crew, times = training.loop.crew, []
    estimates, begun = crew.estimates, []

    def timed(theta, units):
        now = time.perf_counter()
        times.extend(now - x for x in begun[-1:])
        begun.append(now)
        return estimates(theta, units)

    crew.estimates = timed
    return times


def digest(theta):
    """sha256 of a dict of arrays, hexadecimal."""
    return hashlib.sha256(b"".join(theta[name].tobytes() for name in sorted(theta))).hexdigest()


@contextlib.contextmanager
def cluster(num_cpus):
    """A Ray of this machine, which all runs of this process then use; its address."""
    import ray

    os.environ.update(RAY_worker_niceness="0")
    for left in reversed(range(_TRIES)):
        try:
            context = ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        except Exception:  # What Ray raises where other programs hold up its start.
            for pid in descendants(os.getpid()):  # It leaves behind what has started.
                os.kill(pid, signal.SIGKILL)
            if not left:
                raise
    try:
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()


def at_steps(training, steps, moments, act):
    """Has `act` called in a thread, at a random moment of each of some outer steps."""
    crew, left = training.loop.crew, sorted(steps)
    estimates = crew.estimates

    def disturbed(theta, units):
        if left and units[0].step >= left[0]:
            left.pop(0)
            threading.Timer(moments.uniform(0.0, _LATEST), act).start()
        return estimates(theta, units)

    crew.estimates = disturbed


def lives(pid):
    """Whether a process is there and has not ended, as Linux tells."""
    return _stat(pid)[:1] not in ([], ["Z"])


def descendants(pid):
    """The processes that a process has started, and those that they have: set."""
    numbers = [int(x.name) for x in pathlib.Path("/proc").iterdir() if x.name.isdigit()]
    parents = {child: int(_stat(child)[1]) for child in numbers if lives(child)}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def workers(pid):
    """The worker processes among the descendants of a process: list."""
    titles = {x: pathlib.Path(f"/proc/{x}/cmdline") for x in descendants(pid)}
    return [x for x, file in titles.items() if lives(x) and b"::RayWorker" in file.read_bytes()]


def processor_seconds(pid):
    """What a process and its descendants have used so far."""
    ticks = 0
    for fields in map(_stat, (pid, *descendants(pid))):
        ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid):
    """The fields of a process from its state on; none if it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
