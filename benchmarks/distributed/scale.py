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
from meta.training import ray_crew
from meta.training.crew import Crew
from meta.training.outer_loop import OuterLoop
from meta.training.shards import Estimated, average
from meta.training.worker import Worker

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/distributed", "For the figures and the picture.")
_WORKERS = flags.DEFINE_multi_integer("workers", [1, 2, 5, 10], "On Ray, to check the model.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Of an estimate, in the check.", lower_bound=0.0)
_STEPS = flags.DEFINE_integer("steps", 20, "Outer steps of each check.", lower_bound=5)
_MANY = flags.DEFINE_integer("many", 64, "Shards of each of two workers, in one of the checks.")
_LARGEST = flags.DEFINE_integer("largest", 1024, "Number of workers, in the model.")
_RULES = flags.DEFINE_list(
    "rules",
    ["direction_mixture", "factored_mlp"],
    "Whose theta goes out. Checked: the first.",
)
_ENGINE = flags.DEFINE_string(
    "engine", None, "What Ray costs, as JSON (`model.Engine`), instead of measuring and checking."
)
_GIGABITS = flags.DEFINE_float("gigabits", 10.0, "Per second, of the driver's network.")
_LATENCY = flags.DEFINE_float("latency", 0.5, "Of that network, one way, milliseconds.")
_COSTS = ("put", "submit", "look", "look_each", "collect", "latency")
smoke.define(steps=5, rules=["sgd"], largest=8, engine=json.dumps(dict.fromkeys(_COSTS, 1e-4)))

_MODELLED_SECONDS = (0.05, 0.5, 5.0)
_SATURATED = 0.9
"""A driver that keeps less of the speed than this has too many workers."""

_TASK, _ESTIMATOR = "digits_mlp", "pes"
_STATE = 1 << 20
"""Bytes of a state, when the costs of one are measured."""

_HELP_SECONDS = 0.5
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
    """Processor time of the driver in an outer step, with all estimates there."""
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
        start = time.process_time()
        loop.run(10 + num_steps)
        return (time.process_time() - start) / num_steps


def adding_seconds(theta, count=64):
    """What the mean of the estimates takes for each of them."""
    start = time.process_time()
    average([theta] * count)
    return (time.process_time() - start) / count


def calibrated(engine, theta):
    """The `model.Engine` with all that a step and a unit cost a driver: pair with what it is from.

    Some of this costs less if it is measured alone: between two units, caches go cold.
    """
    num, num_bytes = 2 * _MANY.value, bytes_of(theta)
    one = model.Load(np.full(1, _SECONDS.value), 1, num_bytes, num_bytes)
    many = model.Load(np.full(2, _SECONDS.value / _MANY.value), _MANY.value, num_bytes, num_bytes)
    with sleeping(theta, 2, num) as crew:
        rows = [compared(bare(engine, theta), crew, load) for load in (one, many)]
    lacking = [row["driver_seconds"] - row["driver_seconds_modelled"] for row in rows]
    of_unit = (lacking[1] - lacking[0]) / (num - 1)
    put = max(0.0, engine.put + lacking[0] - of_unit)
    return dataclasses.replace(engine, put=put, collect=max(0.0, engine.collect + of_unit)), rows


def bare(engine, theta):
    """The `model.Engine` of a driver without an outer loop."""
    return dataclasses.replace(engine, add=adding_seconds(theta), apply=0.0)


def check(engine, theta):
    """Measured on Ray and modelled: list of dicts."""
    num, seconds = max(_WORKERS.value), _SECONDS.value
    loads = [(np.full(n, seconds), True) for n in _WORKERS.value]
    slow = np.full(num, seconds)
    slow[0] *= _SLOWER
    loads += [(slow, True), (np.full(num, seconds), False), (slow, False)]
    found = []
    with sleeping(theta, num, num) as crew:
        for times, waits in loads:
            load = model.Load(times, 1, bytes_of(theta), bytes_of(theta), waits)
            found.append(compared(bare(engine, theta), crew, load))
    return found


@contextlib.contextmanager
def sleeping(theta, num_workers, num_shards):
    """`Sleepers`, ended at the end."""
    import sleepers

    crew = sleepers.Sleepers(theta, num_workers, num_shards)
    try:
        yield crew
    finally:
        crew.close()


def compared(engine, crew, load):
    """A `Load` measured and modelled: dict."""
    num = len(load.seconds) * load.shards_each
    waits_long = load.waits and max(load.seconds) > min(load.seconds)
    steps = _STEPS.value // 4 if waits_long else _STEPS.value
    times = np.repeat(load.seconds, load.shards_each)
    measured, driver = crew.run(steps, num, times, None if load.waits else _STALENESS)
    modelled, busy = model.steps_per_second(engine, load, steps)
    row = {
        "workers": len(load.seconds),
        "shards": num,
        "seconds": float(load.seconds[-1]),
        "slowest": float(max(load.seconds)),
        "waits": load.waits,
        "steps_per_second": round(measured, 4),
        "modelled": round(float(modelled), 4),
        "driver_seconds": round(driver, 5),
        "driver_seconds_modelled": round(float(busy / modelled), 5),
    }
    print(row, flush=True)
    return row


def kept_with_a_slow_worker(checks):
    """What was measured: dict from whether steps wait to the fraction of the speed that is left."""
    num, speeds = max(row["workers"] for row in checks), {}
    for row in checks:
        if row["workers"] == num:
            speeds[row["waits"], row["slowest"] > row["seconds"]] = row["steps_per_second"]
    return {
        name: round(speeds[waits, True] / speeds[waits, False], 3)
        for name, waits in (("synchronous", True), ("asynchronous", False))
    }


def bytes_of(theta):
    """Of a dict of arrays."""
    return sum(x.nbytes for x in theta.values())


def numbers_of_workers():
    return [2**i for i in range(_LARGEST.value.bit_length())]


def load_of(num, seconds, num_bytes, state_bytes, **others):
    """The `Load` of workers with one shard each, whose states return every ten estimates."""
    state = {"state_bytes": state_bytes, "state_every": ray_crew.STATE_EVERY, "spread": _SPREAD}
    return model.Load(np.full(num, seconds), 1, num_bytes, num_bytes, **{**state, **others})


def kept(engine, load, speed=None):
    """The fraction of the speed that the workers would have if nothing else cost anything."""
    speed = model.steps_per_second(engine, load)[0] if speed is None else speed
    return round(float(speed / model.steps_per_second(model.FREE, load)[0]), 4)


def scaled(engine, num_bytes, state_bytes):
    """The model from one worker to many: list of dicts."""
    rows = []
    for seconds in _MODELLED_SECONDS:
        for num in numbers_of_workers():
            load = load_of(num, seconds, num_bytes, state_bytes)
            speed, busy = model.steps_per_second(engine, load)
            moved = 2 * num_bytes + state_bytes / ray_crew.STATE_EVERY
            rows.append(
                {
                    "workers": num,
                    "seconds": seconds,
                    "steps_per_second": round(float(speed), 4),
                    "kept": kept(engine, load, speed),
                    "driver_works": round(float(busy), 4),
                    "bytes_per_second": round(float(num * moved * speed)),
                }
            )
    return rows


def saturated(rows):
    """From seconds of an estimate to the most workers of which most of the speed is kept: dict."""
    return {
        seconds: max(
            (
                row["workers"]
                for row in rows
                if row["seconds"] == seconds and row["kept"] >= _SATURATED
            ),
            default=0,
        )
        for seconds in _MODELLED_SECONDS
    }


def helped(engine, num_bytes, state_bytes):
    """What is kept of the speed as it is, and with each thing that may help: list of dicts."""
    rows = []
    for num in numbers_of_workers():
        load = load_of(num, _HELP_SECONDS, num_bytes, state_bytes)
        row = {"workers": num, "kept": kept(engine, load)}
        row["state_each_time"] = kept(engine, dataclasses.replace(load, state_every=1))
        row["no_state"] = kept(engine, dataclasses.replace(load, state_bytes=0))
        longer = dataclasses.replace(load, seconds=4 * load.seconds)
        row["estimates_of_four_times_the_time"] = kept(engine, longer)
        groups = 2 ** (num.bit_length() // 2)
        speed = model.steps_per_second_of_a_tree(engine, load, groups)
        row |= {"tree": kept(engine, load, speed), "groups": groups}
        rows.append(row)
    return rows


def with_a_slow_worker(engine, num_bytes, seconds=0.5):
    """The fraction of the speed that is kept with one worker that is ten times slower: list."""
    rows = []
    for num in [*numbers_of_workers()[1:], 10]:
        row = {"workers": num}
        for name, waits in (("synchronous", True), ("asynchronous", False)):
            speeds = []
            for slower in (1.0, _SLOWER):
                load = load_of(num, seconds, num_bytes, 0, waits=waits)
                load.seconds[0] *= slower
                # Of many steps: a slow worker makes few estimates.
                speeds.append(model.steps_per_second(engine, load, 200)[0])
            row[name] = round(float(speeds[1] / speeds[0]), 3)
        rows.append(row)
    return rows


def results(rule, cluster, theta):
    """What the model says of one rule: dict."""
    sizes = state_bytes(theta, task=_TASK, rule=rule, rule_config={})
    own = bytes_of(theta), sizes[_ESTIMATOR]
    modelled = scaled(cluster, *own)
    return {
        "theta_bytes": own[0],
        "state_bytes": sizes,
        "engine_seconds": dataclasses.asdict(cluster),
        "modelled": modelled,
        "most_workers": saturated(modelled),
        "what_helps": helped(cluster, *own),
        "one_slow_worker": with_a_slow_worker(cluster, own[0]),
    }


def plot(found, checks, file):
    """The fraction of the ideal speed over the number of workers."""
    figure, axes = plt.subplots(figsize=(7.0, 4.2))
    modelled, numbers = found["modelled"], numbers_of_workers()
    for i, seconds in enumerate(_MODELLED_SECONDS):
        rows = [row["kept"] for row in modelled if row["seconds"] == seconds]
        axes.plot(numbers, rows, f"C{i}-", label=f"model, {seconds:g} s an estimate")
        if seconds == _HELP_SECONDS:
            tree = [row["tree"] for row in found["what_helps"]]
            axes.plot(numbers, tree, f"C{i}--", label=f"the same, with a tree, {seconds:g} s")
    rows = [r for r in checks if r["waits"] and r["slowest"] == r["seconds"]]
    if rows:
        label = f"measured on one machine, {rows[0]['seconds']:g} s"
        speeds = [row["steps_per_second"] * row["seconds"] for row in rows]
        axes.plot([row["workers"] for row in rows], speeds, "ko", markersize=4, label=label)
    axes.set(xscale="log", ylim=(0.0, 1.05), xlabel="workers, each with one shard")
    axes.set_xticks(numbers, [str(x) for x in numbers])
    axes.minorticks_off()
    axes.set_ylabel("outer steps per second, of those\nif only estimates took time")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(figure)


def measured(thetas, drivers):
    """On Ray: dict from a rule to its `model.Engine`, and what was measured for it."""
    import sleepers

    engines, found = {}, {"calibration": {}}
    with runs.cluster(max(_WORKERS.value)):
        for rule, theta in thetas.items():
            engine = sleepers.engine(theta, _STATE, **drivers[rule])
            engines[rule], found["calibration"][rule] = calibrated(engine, theta)
        first = _RULES.value[0]
        found["checks"] = check(engines[first], thetas[first])
    found["kept_with_a_slow_worker"] = kept_with_a_slow_worker(found["checks"])
    return engines, found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    thetas, drivers = {}, {}
    for rule in _RULES.value:
        config = runs.config("unused", 1, 1, 0, rule=rule, rule_config={})
        theta = {name: np.asarray(x) for name, x in config.make_rule().init_theta(0).items()}
        one, many = (driver_seconds(config, theta, num) for num in (1, 65))
        thetas[rule], drivers[rule] = theta, {"add": (many - one) / 64, "apply": one}
    if _ENGINE.value is None:
        engines, found = measured(thetas, drivers)
    else:
        costs, found = json.loads(_ENGINE.value), {"checks": []}
        engines = {rule: model.Engine(**costs, **drivers[rule], per_byte=0.0) for rule in thetas}
    content = {"network": {"gigabits": _GIGABITS.value, "milliseconds": _LATENCY.value}}
    content |= {**found, "rules": {}}
    for rule, engine in engines.items():
        latency = engine.latency + 1e-3 * _LATENCY.value
        cluster = dataclasses.replace(engine, latency=latency, per_byte=8e-9 / _GIGABITS.value)
        content["rules"][rule] = results(rule, cluster, thetas[rule])
    provenance.write_results(os.path.join(_OUT_DIR.value, "scale.json"), content)
    first = content["rules"][_RULES.value[0]]
    plot(first, found["checks"], os.path.join(_OUT_DIR.value, "scale.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
