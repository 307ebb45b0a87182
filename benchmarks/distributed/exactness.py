"""Whether meta-training on Ray ends with the same bits, whatever happens to its processes.

python benchmarks/distributed/exactness.py --out_dir=benchmarks/results/distributed

Each case is a run with the same settings but for the number of workers. In some, workers are
killed at random moments, stopped for good, or slowed down; in others the driver is killed or
interrupted, or stops because its workers die again and again, and the run goes on with another
number of workers. The digest of theta must be that of the run without workers.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time

import runs
from absl import app, flags, logging

from meta import provenance, smoke
from meta.training import run
from meta.training.crew import CrewFailed

_OUT_DIR = flags.DEFINE_string("out_dir", "out/distributed", "For the figures.")
_STEPS = flags.DEFINE_integer("steps", 50, "Outer steps of a run.", lower_bound=10)
_SHARDS = flags.DEFINE_integer("shards", 3, "Of a run.", lower_bound=3)
_KILLS = flags.DEFINE_integer("kills", 10, "Of workers, in one run.", lower_bound=1)
_CASES = flags.DEFINE_list("cases", [], "Names of the cases to run. Default: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
smoke.define(steps=10, cases=["this process"])

_CHECKPOINT = runs.SETTING["checkpoint_every"]
_PERIOD, _AWAKE = 0.2, 0.02
"""Seconds: a worker that is slowed down ten times runs for the second in each of the first."""


_address = []
"""Of the cluster on which all runs are."""


def config(out_dir, num_workers, address=None):
    return runs.config(out_dir, _STEPS.value, _SHARDS.value, num_workers, ray_address=address)


def train(out_dir, num_workers, disturb=None):
    """Takes all outer steps, or those that are left; the digest of theta.

    Args:
        out_dir: of the run.
        num_workers: how many.
        disturb: function of the `MetaTraining` before its first step.
    """
    with run.started(config(out_dir, num_workers)) as training:
        if disturb is not None:
            disturb(training)
        training.loop.run(_STEPS.value)
        return runs.digest(training.loop.theta)


def a_worker(training, moments, without=()):
    """The number of a worker that works; waits for one."""
    while True:
        found = [pid for pid in training.processes if pid not in without and runs.lives(pid)]
        if found:
            return moments.choice(found)
        time.sleep(0.01)


def signalled(pid, number):
    """Sends a signal; whether the process lived."""
    lived = runs.lives(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return lived


def undisturbed(num_workers):
    def case(out_dir, _):
        return train(out_dir, num_workers), {}

    return case


def workers_killed(out_dir, moments):
    """Kills a worker at ten random moments."""
    killed = set()

    def disturb(training):
        def kill():
            pid = a_worker(training, moments, killed)
            if signalled(pid, signal.SIGKILL):
                killed.add(pid)

        steps = moments.sample(range(1, _STEPS.value - 1), _KILLS.value)
        runs.at_steps(training, steps, moments, kill)

    return train(out_dir, 2, disturb), {"killed": len(killed)}


def worker_stopped(out_dir, moments):
    """Stops a worker for good, as SIGSTOP does: it lives, and gives no sign."""
    stopped = []

    def disturb(training):
        def stop():
            stopped.append(a_worker(training, moments))
            os.kill(stopped[0], signal.SIGSTOP)

        runs.at_steps(training, [moments.randrange(1, _STEPS.value - 1)], moments, stop)

    digest = train(out_dir, 2, disturb)
    return digest, {"stopped": len(stopped), "processes_left": sum(map(runs.lives, stopped))}


def worker_slowed(out_dir, moments):
    """A worker runs in a tenth of the time only, from the second outer step on."""
    over = threading.Event()

    def disturb(training):
        def slow():
            pid = a_worker(training, moments)
            while not over.is_set() and signalled(pid, signal.SIGSTOP):
                over.wait(_PERIOD - _AWAKE)
                signalled(pid, signal.SIGCONT)
                time.sleep(_AWAKE)

        runs.at_steps(training, [1], moments, slow)

    try:
        return train(out_dir, 2, disturb), {}
    finally:
        over.set()


def workers_lost(out_dir, moments):
    """Whatever worker starts is killed, until the run stops. It goes on in one process."""
    over, errors = threading.Event(), []

    def disturb(training):
        def kill_all():
            while not over.is_set():
                for pid in training.processes:
                    signalled(pid, signal.SIGKILL)
                over.wait(0.05)

        runs.at_steps(training, [_STEPS.value // 2], moments, kill_all)

    try:
        train(out_dir, 2, disturb)
    except CrewFailed as error:
        errors.append(str(error))
    finally:
        over.set()
    return train(out_dir, 0), {"error": errors[0]}


def driver_gone(number, num_workers):
    """A case in which a signal ends the driver between two checkpoints; others then go on."""

    def case(out_dir, moments):
        context = multiprocessing.get_context("spawn")
        others = runs.workers(os.getpid())
        last = _STEPS.value - 1
        step = moments.randrange(min(_CHECKPOINT + 1, last), min(2 * _CHECKPOINT, last + 1))
        own = config(out_dir, 2, _address[0]), step, number, _SEED.value
        driver = context.Process(target=signal_itself, args=own)
        driver.start()
        driver.join()
        if not driver.exitcode:
            raise RuntimeError(f"The run took all its steps: the signal at {step} ended nothing.")
        time.sleep(10.0)
        left = set(runs.workers(os.getpid())) - set(others)
        with run.started(config(out_dir, 0)) as training:
            kept = training.loop.step
        counted = {"signal_at_step": step, "kept_step": kept, "workers_left": len(left)}
        return train(out_dir, num_workers), counted

    return case


def signal_itself(config, step, number, seed):
    """In a process of its own: a run that gets a signal at a random moment of an outer step."""

    signal.signal(signal.SIGINT, signal.default_int_handler)  # Jobs in the background ignore it.
    with run.started(config) as training:
        own = os.getpid()
        runs.at_steps(training, [step], random.Random(seed), lambda: os.kill(own, number))
        training.loop.run(config.num_outer_steps)


_HERE = "this process"
CASES = {
    _HERE: undisturbed(0),
    "2 workers": undisturbed(2),
    "workers killed": workers_killed,
    "driver killed (then 3 workers)": driver_gone(signal.SIGKILL, 3),
    "a worker stopped": worker_stopped,
    "a worker slowed ten times": worker_slowed,
    "3 workers": undisturbed(3),
    "1 worker": undisturbed(1),
    "workers lost again and again (then this process)": workers_lost,
    "driver interrupted (then this process)": driver_gone(signal.SIGINT, 0),
}


def compare(names):
    """Runs the cases; yields the dict from name to digest, seconds and what was counted."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            begin = time.perf_counter()
            digest, counted = CASES[name](os.path.join(folder, str(i)), random.Random(_SEED.value))
            seconds = round(time.perf_counter() - begin, 1)
            results[name] = {"theta_sha256": digest, "seconds": seconds, **counted}
            print(name, results[name], flush=True)
            yield results


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    names = _CASES.value or list(CASES)
    if unknown := set(names) - set(CASES):
        raise app.UsageError(f"`--cases` must be some of {list(CASES)}. Received: {unknown}")
    with contextlib.ExitStack() as stack:
        if names != [_HERE]:
            _address.append(stack.enter_context(runs.cluster(2 * _SHARDS.value)))
        write(names)


def write(names):
    """The figures of the cases, as they come."""
    setting = {"outer_steps": _STEPS.value, "shards": _SHARDS.value, **runs.SETTING}
    for results in compare(names):
        same = len({result["theta_sha256"] for result in results.values()}) == 1
        content = {"setting": setting, "same_bits": same, "cases": results}
        provenance.write_results(os.path.join(_OUT_DIR.value, "exactness.json"), content)
    print("The same bits." if same else "OTHER BITS.")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as cache:
        # All workers have the same program. TensorFlow reads this when it starts.
        given = os.environ.get("TF_XLA_FLAGS", "")
        os.environ["TF_XLA_FLAGS"] = f"{given} --tf_xla_persistent_cache_directory={cache}".strip()
        given = os.environ.get("XLA_FLAGS", "")  # Its steps are short, its processes many.
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_optimization_level=0".strip()
        app.run(main)
