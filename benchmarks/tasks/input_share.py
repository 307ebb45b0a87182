"""What drawing batches costs in a meta-step.

python benchmarks/tasks/input_share.py --out_dir=benchmarks/results/tasks

For one architecture of each family with data, an outer step of PES is timed as it is, and
with batches that are drawn once, before the loop: the difference is the input. The two
alternate in one process; medians over repetitions.
"""

import os
import time

import numpy as np
import tensorflow as tf
import tqdm
from absl import app, flags, logging

from lopt_keras import rules
from meta import estimators, provenance, random, smoke, tasks
from meta.tasks.sampling import distribution
from meta.tasks.wrapper import Wrapper

_FAMILIES = flags.DEFINE_list("families", None, "Families. Default: all of meta-training.")
_PARTICLES = flags.DEFINE_integer("particles", 16, "Particles.", lower_bound=2)
_UNROLL_LENGTH = flags.DEFINE_integer("unroll_length", 20, "Inner steps.", lower_bound=1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 15, "Timings of each.", lower_bound=3)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/tasks", "For the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(families=["image_mlp"], particles=2, unroll_length=1, repetitions=3)


class DrawnBefore(Wrapper):
    """A task whose batch is always the same one: its `batch` costs nothing in a loop."""

    def __init__(self, task, num):
        object.__setattr__(self, "task", task)
        setting = task.draw(random.seed(0), num)
        self._batches = {
            split: tf.nest.map_structure(
                tf.constant, task.batch(split, random.seed(1), num, setting)
            )
            for split in ("train", "validation")
        }

    def batch(self, split, seed, num, setting):
        return self._batches[split]


def make_step(task, rule):
    """A function that takes one outer step and returns its seconds."""
    estimator = estimators.get(
        "pes",
        rule,
        task,
        num_particles=_PARTICLES.value,
        unroll_length=_UNROLL_LENGTH.value,
        horizon=5 * _UNROLL_LENGTH.value,
        outer_split="validation",
    )
    theta = {name: tf.constant(value) for name, value in rule.init_theta(0).items()}
    state = estimator.init_state(theta, random.seed(0))
    estimate = tf.function(estimator.estimate, jit_compile=True, autograph=False)

    def step():
        start = time.perf_counter()
        result = estimate(theta, state, random.seed(1))
        float(result.metrics["meta_loss"])
        return time.perf_counter() - start

    step()
    return step


def measure(family):
    """Median seconds of both, and the fraction of the input: dict."""
    config = next(
        config
        for config in (tasks.sample_config(seed) for seed in range(10_000))
        if config.family == family
    )
    task, rule = config.build(_DATA_DIR.value), rules.FactoredMLP(hidden_size=8)
    whole = make_step(task, rule)
    without = make_step(DrawnBefore(task, _PARTICLES.value // 2), rule)
    pairs = np.array([(whole(), without()) for _ in range(_REPETITIONS.value)])
    fractions = 1.0 - pairs[:, 1] / pairs[:, 0]
    return {
        "architecture": config.architecture,
        "milliseconds": 1e3 * float(np.median(pairs[:, 0])),
        "input_share": float(1.0 - np.median(pairs[:, 1]) / np.median(pairs[:, 0])),
        "input_share_quartiles": np.quantile(fractions, [0.25, 0.75]).tolist(),
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    families = _FAMILIES.value or distribution.families("train")
    results = {family: measure(family) for family in tqdm.tqdm(families, unit="family")}
    for family, found in results.items():
        print(
            f"{family:>24}: {found['milliseconds']:8.1f} ms an outer step, "
            f"input {100 * found['input_share']:5.1f} %"
        )
    settings = {"particles": _PARTICLES.value, "unroll_length": _UNROLL_LENGTH.value}
    provenance.write_results(
        os.path.join(_OUT_DIR.value, "input_share.json"), {**settings, "families": results}
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
