"""How many workers one driver can serve: a model, its parameters measured, checked on Ray.

python benchmarks/distributed/scale.py --out_dir=benchmarks/results/distributed

The workers of the check are processes on Ray that sleep for the time of an estimate, and return
arrays of the size of a meta-gradient. What the engine costs the driver is measured with them. The
model (`model.py`) then goes to more workers than one machine has.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
import time

import matplotlib
import model
import numpy as np
import runs
from absl import app, flags, logging

from meta import provenance, smoke
from meta.training.crew import Crew
from meta.training.outer_loop import OuterLoop
from meta.training.shards import Estimated
from meta.training.worker import Worker

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/distributed", "For the figures and the picture.")
_WORKERS = flags.DEFINE_multi_integer("workers", [1, 2, 4, 8], "On Ray, to check the model.")
_SECONDS = flags.DEFINE_multi_float("seconds", [0.5], "Of an estimate, in the check.")
_STEPS = flags.DEFINE_integer("steps", 20, "Outer steps of each check.", lower_bound=5)
_RULE = flags.DEFINE_string("rule", "factored_mlp", "Whose theta goes out.")
_ENGINE = flags.DEFINE_string(
    "engine", None, "What Ray costs, as JSON (`model.Engine`), instead of measuring and checking."
)
_GIGABITS = flags.DEFINE_float("gigabits", 10.0, "Per second, of the driver's network.")
_LATENCY = flags.DEFINE_float("latency", 0.5, "Of that network, one way, milliseconds.")
_COSTS = ("put", "submit", "look", "look_each", "collect", "latency")
smoke.define(steps=5, rule="sgd", engine=json.dumps(dict.fromkeys(_COSTS, 1e-4)))

_MODELLED = [2**i for i in range(10)]
_MODELLED_SECONDS = (0.05, 0.5, 5.0)
_SPREAD = 0.1
_SLOWER = 10.0
_STALENESS = 100
_HELD = {
    "es, whole problems": {"estimator": "es", "horizon": 20},
    "es": {"estimator": "es"},
    "pes": {"estimator": "pes"},
    "nres": {"estimator": "nres"},
}
"""Estimators of which the bytes of the state are counted."""


def state_bytes(theta, **others):
    """Bytes of the state of a shard: dict from name of an estimator."""
    sizes = {}
    for name, own in _HELD.items():
        config = runs.config("unused", 1, 1, 0, **{**others, **own})
        ((estimator, _),) = config.make_programs(config.make_rule()).values()
        state = Worker([estimator], config.make_curriculum(), 0).init_state(theta, 0, 0)
        sizes[name] = sum(x.numpy().nbytes for x in state)
    return sizes


class Instant(Crew):
    """Has all estimates ready: what is left is the driver's own work."""

    def __init__(self, theta):
        metrics = {"meta_loss": 1.0, "unroll_length": 20.0}
        self._made = Estimated(theta, None, metrics, 1.0, is_new=False)

    def begin(self, shards, theta):
        return {pair: [] for pair in shards.pairs}

    def restore(self, states):
        pass

    def states(self):
        return {}

    def estimates(self, theta, units):
        return [self._made for _ in units]

    def keep(self, units, made):
        pass

    def newest(self, theta, step, count, max_staleness):
        raise NotImplementedError("What is measured is the synchronous driver.")


def driver_seconds(config, theta, num_shards, num_steps=200):
    """Of an outer step, with all estimates there."""
    with tempfile.TemporaryDirectory() as folder:
        loop = OuterLoop(
            config.make_programs(config.make_rule()),
            config.make_outer_optimizer(),
            seed=0,
            out_dir=folder,
            checkpoint_every=10 * num_steps,
            num_shards=num_shards,
            crew=Instant(theta),
        )
        loop.run(10)
        start = time.perf_counter()
        loop.run(10 + num_steps)
        return (time.perf_counter() - start) / num_steps


def check(theta, driver):
    """On Ray: the `model.Engine`, and list of dicts of measured and modelled speeds."""
    import sleepers

    with contextlib.ExitStack() as stack:
        stack.enter_context(runs.cluster(max(_WORKERS.value)))
        crew = sleepers.Sleepers(theta, max(_WORKERS.value))
        stack.callback(crew.close)
        engine = sleepers.engine(theta, **driver)
        # No outer optimizer is here.
        own, num_bytes = dataclasses.replace(engine, apply=0.0), bytes_of(theta)
        found = []
        for seconds in _SECONDS.value:
            for num in _WORKERS.value:
                measured = crew.steps_per_second(_STEPS.value, num, seconds)
                found.append(_compared(own, measured, num_bytes, np.full(num, seconds)))
        num = max(_WORKERS.value)
        for slower in (1.0, _SLOWER):
            times = np.full(num, seconds)
            times[0] *= slower
            measured = crew.steps_per_second(_STEPS.value, num, times, _STALENESS)
            found.append(_compared(own, measured, num_bytes, times, waits=False))
    return engine, found


def _compared(engine, measured, num_bytes, seconds, waits=True):
    load = model.Load(seconds, 1, num_bytes, num_bytes, waits)
    modelled, _ = model.steps_per_second(engine, load, _STEPS.value)
    row = {
        "workers": len(seconds),
        "seconds": float(seconds[-1]),
        "slowest": float(max(seconds)),
        "waits": waits,
        "steps_per_second": round(measured, 3),
        "modelled": round(modelled, 3),
    }
    print(row, flush=True)
    return row


def bytes_of(theta):
    """Of a dict of arrays."""
    return sum(x.nbytes for x in theta.values())


def scaled(engine, num_bytes):
    """The model from 1 to 512 workers: list of dicts."""
    rows = []
    for seconds in _MODELLED_SECONDS:
        for num in _MODELLED:
            load = model.Load(np.full(num, seconds), 1, num_bytes, num_bytes, spread=_SPREAD)
            speed, busy = model.steps_per_second(engine, load)
            row = {"workers": num, "seconds": seconds, "steps_per_second": round(speed, 4)}
            row["driver_works"] = round(busy, 4)
            row["bytes_per_second"] = round(2 * num * num_bytes * speed)
            rows.append(row)
    return rows


def with_a_slow_worker(engine, num_bytes, seconds=0.5):
    """The fraction of the speed that is kept with one worker that is ten times slower: list."""
    rows = []
    for num in _MODELLED[1:]:
        row = {"workers": num}
        for waits in (True, False):
            speeds = []
            for slower in (1.0, _SLOWER):
                times = np.full(num, seconds)
                times[0] *= slower
                load = model.Load(times, 1, num_bytes, num_bytes, waits, _SPREAD)
                speeds.append(model.steps_per_second(engine, load)[0])
            name = "kept_synchronous" if waits else "kept_asynchronous"
            row[name] = round(speeds[1] / speeds[0], 3)
        rows.append(row)
    return rows


def plot(modelled, checks, file):
    """The fraction of the ideal speed over the number of workers."""
    figure, axes = plt.subplots(figsize=(7.0, 4.2))
    for i, seconds in enumerate(_MODELLED_SECONDS):
        rows = [row for row in modelled if row["seconds"] == seconds]
        kept = [row["steps_per_second"] * seconds for row in rows]
        axes.plot(_MODELLED, kept, f"C{i}-", label=f"model, {seconds:g} s an estimate")
    for i, seconds in enumerate(sorted({row["seconds"] for row in checks})):
        rows = [row for row in checks if row["seconds"] == seconds and row["waits"]]
        kept = [row["steps_per_second"] * seconds for row in rows]
        label = f"measured on one machine, {seconds:g} s"
        axes.plot([row["workers"] for row in rows], kept, f"C{i + 3}o", label=label)
    axes.set(xscale="log", ylim=(0.0, 1.05), xlabel="workers, each with one shard")
    axes.set_xticks(_MODELLED, [str(x) for x in _MODELLED])
    axes.minorticks_off()
    axes.set_ylabel("outer steps per second,\nof those without a driver")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    config = runs.config("unused", 1, 1, 0, rule=_RULE.value, rule_config={})
    theta = {name: np.asarray(x) for name, x in config.make_rule().init_theta(0).items()}
    one, many = (driver_seconds(config, theta, num) for num in (1, 65))
    driver = {"add": (many - one) / 64, "apply": one}
    checks = []
    if _ENGINE.value is None:
        engine, checks = check(theta, driver)
    else:
        engine = model.Engine(**json.loads(_ENGINE.value), **driver, per_byte=0.0)
    latency = engine.latency + 1e-3 * _LATENCY.value
    cluster = dataclasses.replace(engine, latency=latency, per_byte=8e-9 / _GIGABITS.value)
    modelled = scaled(cluster, bytes_of(theta))
    sizes = state_bytes(theta, task="digits_mlp", rule=_RULE.value, rule_config={})
    content = {
        "theta_bytes": bytes_of(theta),
        "state_bytes": sizes,
        "engine_seconds": dataclasses.asdict(engine),
        "network": {"gigabits": _GIGABITS.value, "milliseconds": _LATENCY.value},
        "checks": checks,
        "modelled": modelled,
        "one_slow_worker": with_a_slow_worker(cluster, bytes_of(theta)),
    }
    provenance.write_results(os.path.join(_OUT_DIR.value, "scale.json"), content)
    plot(modelled, checks, os.path.join(_OUT_DIR.value, "scale.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
