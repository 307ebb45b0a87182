"""Losses of a tuned Adam, by which the losses of tasks are compared.

python -m meta.tasks.references --num_tasks=2000

computes what the file `references.json` beside this one does not yet hold, and writes it:
for each task the mean validation loss at the start, that over the last tenth of 100 steps of
the best of Adam's 9 learning rates, and what a step takes.
"""

import functools
import hashlib
import json
import os
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm
from absl import app, flags, logging

from lopt_keras import rules
from meta import random, run_directory, unroll
from meta.tasks import distribution

FILE = os.path.join(os.path.dirname(__file__), "references.json")
NUM_STEPS = 100
LEARNING_RATES = tuple(float(f"{rate:.3g}") for rate in 10.0 ** np.arange(-4.0, 0.5, 0.5))

_PROBLEMS = 2
_TAIL = NUM_STEPS // 10
_SEED = 0

_SET = flags.DEFINE_enum("set", "train", distribution.SETS, "Which set of tasks.")
_NUM_TASKS = flags.DEFINE_integer("num_tasks", 100, "How many of its tasks.", lower_bound=1)
_FILE = flags.DEFINE_string("file", FILE, "JSON to complete.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")


class Reference(NamedTuple):
    """How a task goes with a tuned Adam.

    Attributes:
        initial: validation loss at the start, mean over problems.
        final: validation loss over the last tenth of `NUM_STEPS` steps, of the best of
            `LEARNING_RATES`.
        learning_rate: that one.
        milliseconds: of a step of one particle, where the file was made: only to
            compare tasks.
    """

    initial: float
    final: float
    learning_rate: float
    milliseconds: float

    @property
    def is_trainable(self):
        """Whether Adam lowers the loss, by more than what rounding or luck might."""
        return np.isfinite(self).all() and self.initial - self.final > 0.02 * abs(self.initial)


def identify(config):
    """The key of a task in the file, 16 hexadecimal digits."""
    return hashlib.sha256(config.key.encode()).hexdigest()[:16]


@functools.cache
def load(file=FILE):
    """Dict from key to `Reference`, empty if there is no such file."""
    if not os.path.exists(file):
        return {}
    with open(file, encoding="utf-8") as f:
        return {key: Reference(*values) for key, values in json.load(f).items()}


def compute(configs, data_dir=None):
    """The `Reference` of each of some tasks that are one program: list."""
    task = distribution.build(configs, data_dir)
    variants, rates = len(configs), len(LEARNING_RATES)
    problems = variants * _PROBLEMS
    adams = [rules.Adam(learning_rate=rate).init_theta() for rate in LEARNING_RATES]
    theta = {
        name: tf.constant(np.repeat([adam[name] for adam in adams], problems, axis=0))
        for name in adams[0]
    }
    rule = rules.Adam()

    @tf.function(jit_compile=True, autograph=False)
    def run(theta, variant, seed):
        chosen = _Chosen(task, variant)
        inner = unroll.begin(rule, chosen, theta, random.fold_in(seed, 0), problems)
        batches = random.fold_in(seed, 1)
        return unroll.run(rule, chosen, theta, inner, batches, NUM_STEPS, problems, "validation")[
            0
        ].outer_loss

    variant = tf.constant(np.tile(np.arange(variants, dtype="int32"), _PROBLEMS))
    program = run.get_concrete_function(theta, variant, random.seed(_SEED))
    program(theta, variant, random.seed(_SEED + 1))  # Compiles.
    start = time.perf_counter()
    losses = program(theta, variant, random.seed(_SEED)).numpy()
    cost = 1e3 * (time.perf_counter() - start) / (NUM_STEPS * problems * rates)
    losses = losses.reshape(NUM_STEPS, rates, _PROBLEMS, variants).astype(np.float64)
    initial = losses[0].mean(axis=(0, 1))
    final = losses[-_TAIL:].mean(axis=(0, 2))
    final = np.where(np.isfinite(final), final, np.inf)
    best = final.argmin(axis=0)
    return [
        _rounded(initial[i], final[best[i], i], LEARNING_RATES[best[i]], cost)
        for i in range(variants)
    ]


class _Chosen:
    """A task of which problem i is variant `variant[i]`."""

    def __init__(self, task, variant):
        self._task, self._variant = task, variant

    def draw(self, seed, num):
        return self._task.draw(seed, num, self._variant)

    def __getattr__(self, name):
        return getattr(self._task, name)


def _rounded(*values):
    return Reference(*(float(f"{value:.5g}") for value in values))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    found = dict(load(_FILE.value))
    wanted = [distribution.sample_config(seed, _SET.value) for seed in range(_NUM_TASKS.value)]
    missing = {identify(c): c for c in wanted if identify(c) not in found}
    groups = distribution.by_program(missing.values())
    print(f"{len(missing)} of {len(wanted)} tasks are without a reference: {len(groups)} programs.")
    for configs in tqdm.tqdm(groups.values(), unit="program"):
        references = compute(configs, _DATA_DIR.value)
        found |= {identify(c): r for c, r in zip(configs, references, strict=True)}
        run_directory.write_json(_FILE.value, found)
    untrainable = sum(not found[identify(config)].is_trainable for config in wanted)
    print(f"{untrainable} of {len(wanted)} tasks are not trainable. {_FILE.value}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
