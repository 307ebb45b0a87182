"""Whether meta-training on Ray ends with the same bits, whatever happens to its processes.

python benchmarks/distributed.py --out_dir=benchmarks/results/distributed

Each case is a run of `python -m meta.train` with the same flags but for `--num_workers`. In some,
a worker is killed again and again, or stopped for good; in others the driver is killed or
interrupted, and the run goes on with another number of workers. The digest of theta must be that
of the run without workers.
"""

import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from lopt_keras import saved_model
from meta import provenance, smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/distributed", "For the figures.")
_STEPS = flags.DEFINE_integer("steps", 50, "Outer steps of a run.", lower_bound=10)
_SHARDS = flags.DEFINE_integer("shards", 3, "Of a run.", lower_bound=2)
_KILLS = flags.DEFINE_integer("kills", 10, "Of workers, in one run.", lower_bound=1)
_PAUSE = flags.DEFINE_float("pause", 30.0, "Seconds between two kills, at most.", lower_bound=0.0)
_CASES = flags.DEFINE_list("cases", [], "Names of the cases to run. Default: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
smoke.define(steps=10, shards=2, cases=["this process"])

_SETTING = (
    "--task=quadratic",
    "--rule=mlp",
    '--rule_config={"hidden_size": 4, "hidden_layers": 1}',
    "--estimator=pes",
    "--num_particles=32",
    "--unroll_length=20",
    "--horizon=100",
    "--checkpoint_every=20",
    "--nolearning_curve",
)


def command(out_dir, num_workers):
    """The command of a run: list."""
    given = [f"--num_outer_steps={_STEPS.value}", f"--num_shards={_SHARDS.value}"]
    own = [f"--out_dir={out_dir}", f"--num_workers={num_workers}"]
    return [sys.executable, "-m", "meta.train", *_SETTING, *given, *own]


def start(out_dir, num_workers):
    """Starts a run whose output goes to a file beside its directory."""
    with open(f"{out_dir}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(command(out_dir, num_workers), stdout=log, stderr=log)


def finish(process, out_dir):
    """Waits for a run; the digest of its theta."""
    if process.wait():
        raise RuntimeError(pathlib.Path(f"{out_dir}.log").read_text(encoding="utf-8"))
    _, theta, _ = saved_model.read(os.path.join(out_dir, "export"))
    return hashlib.sha256(b"".join(theta[name].tobytes() for name in sorted(theta))).hexdigest()


def descendants(pid):
    """The processes that a process has started, and those that they have, as Linux tells: set."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended.
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def workers(pid):
    """The worker processes of a run: sorted list."""
    found = []
    for child in descendants(pid):
        try:
            title = pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::RayWorker"):
            found.append(child)
    return sorted(found)


def undisturbed(num_workers):
    def case(out_dir, _):
        return finish(start(out_dir, num_workers), out_dir), {}

    return case


def worker_killed(out_dir, moments):
    """Kills a worker, ten times, each some seconds after the one before."""
    process, killed = start(out_dir, 2), 0
    while killed < _KILLS.value and process.poll() is None:
        found = workers(process.pid)
        if found and moments.random() < 0.2:
            os.kill(moments.choice(found), signal.SIGKILL)
            killed += 1
            time.sleep(moments.uniform(0.0, _PAUSE.value))
        time.sleep(0.2)
    return finish(process, out_dir), {"killed": killed}


def worker_stopped(out_dir, moments):
    """Stops a worker for good, as SIGSTOP does: it lives, and gives no sign."""
    process = start(out_dir, 2)
    while not os.path.exists(os.path.join(out_dir, "checkpoints", "checkpoint")):
        if process.poll() is not None:
            raise RuntimeError("The run ended before a worker could be stopped.")
        time.sleep(0.05)
    stopped = moments.choice(workers(process.pid))
    os.kill(stopped, signal.SIGSTOP)
    return finish(process, out_dir), {"stopped": 1}


def driver_killed(out_dir, moments):
    """Kills the driver after its first checkpoint. The run goes on with three workers."""
    process = start(out_dir, 2)
    while not os.path.exists(os.path.join(out_dir, "checkpoints", "checkpoint")):
        if process.poll() is not None:
            raise RuntimeError("The run ended before it could be killed.")
        time.sleep(0.05)
    time.sleep(moments.uniform(0.0, 0.5))
    left = descendants(process.pid)
    process.kill()
    process.wait()
    time.sleep(5.0)
    orphans = sum(os.path.exists(f"/proc/{pid}") for pid in left)
    return finish(start(out_dir, 3), out_dir), {"processes_left": orphans}


def interrupted(out_dir, moments):
    """Ctrl-C in the middle of the run, which goes on in one process."""
    process = start(out_dir, 2)
    while not os.path.exists(os.path.join(out_dir, "checkpoints", "checkpoint")):
        if process.poll() is not None:
            raise RuntimeError("The run ended before it could be interrupted.")
        time.sleep(0.05)
    left = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    code = process.wait()
    time.sleep(1.0)
    orphans = sum(os.path.exists(f"/proc/{pid}") for pid in left)
    return finish(start(out_dir, 0), out_dir), {"exit": code, "processes_left": orphans}


CASES = {
    "this process": undisturbed(0),
    "1 worker": undisturbed(1),
    "2 workers": undisturbed(2),
    "3 workers": undisturbed(3),
    "workers killed": worker_killed,
    "a worker stopped": worker_stopped,
    "driver killed": driver_killed,
    "interrupted": interrupted,
}


def compare(names):
    """Runs the cases; dict from name to digest, seconds and what was counted."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            begin = time.perf_counter()
            out_dir = os.path.join(folder, str(i))
            digest, counted = CASES[name](out_dir, random.Random(_SEED.value))
            seconds = round(time.perf_counter() - begin, 1)
            results[name] = {"theta_sha256": digest, "seconds": seconds, **counted}
            print(name, results[name], flush=True)
            shutil.rmtree(out_dir)
    return results


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    names = _CASES.value or list(CASES)
    if unknown := set(names) - set(CASES):
        raise app.UsageError(f"`--cases` must be some of {list(CASES)}. Received: {unknown}")
    results = compare(names)
    same = len({result["theta_sha256"] for result in results.values()}) == 1
    setting = {"outer_steps": _STEPS.value, "shards": _SHARDS.value, "flags": _SETTING}
    content = {**setting, "same_bits": same, "cases": results}
    provenance.write_results(os.path.join(_OUT_DIR.value, "exactness.json"), content)
    print("The same bits." if same else "OTHER BITS.")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
