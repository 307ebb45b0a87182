"""Losses of a tuned Adam, by which the losses of tasks are compared.

The file `references.json` beside this one holds them for the tasks of meta-training.
`python -m meta.tasks --references=2000` computes what is missing in it.
"""

import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lopt_keras import rules
from meta import random
from meta.tasks.sampling import distribution
from meta.tasks.scoring.measured import Measured
from meta.training import unroll

NUM_STEPS = 100
LEARNING_RATES = tuple(float(f"{rate:.3g}") for rate in 10.0 ** np.arange(-4.0, 0.5, 0.5))

_PROBLEMS = 2
_TAIL = NUM_STEPS // 10
_SEED = 0


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


def compute(configs, data_dir=None):
    """The `Reference` of each of some tasks that are one program: list."""
    train = adams(configs, NUM_STEPS, _PROBLEMS, data_dir)
    train(_SEED + 1)  # Compiles.
    start = time.perf_counter()
    losses = train(_SEED)
    cost = 1e3 * (time.perf_counter() - start) / losses.size
    losses = losses.mean(axis=2)
    initial = losses[0].mean(axis=0)
    final = losses[-_TAIL:].mean(axis=0)
    final = np.where(np.isfinite(final), final, np.inf)
    best = final.argmin(axis=0)
    return [
        _rounded(initial[i], final[best[i], i], LEARNING_RATES[best[i]], cost)
        for i in range(len(configs))
    ]


def adams(configs, num_steps, num_problems, data_dir=None):
    """Adam at each of `LEARNING_RATES`, on some tasks that are one program.

    Returns:
        Function from a seed, an integer, to the validation losses before each step,
        `[num_steps, rates, num_problems, tasks]`.
    """
    task = distribution.build(configs, data_dir)
    variants, rates = len(configs), len(LEARNING_RATES)
    problems = variants * num_problems
    thetas = [rules.Adam(learning_rate=rate).init_theta() for rate in LEARNING_RATES]
    theta = {
        name: tf.constant(np.repeat([theta[name] for theta in thetas], problems, axis=0))
        for name in thetas[0]
    }
    variant = tf.constant(np.tile(np.arange(variants, dtype="int32"), num_problems))
    rule = rules.Adam()

    @tf.function(jit_compile=True, autograph=False)
    def run(theta, variant, seed):
        chosen = Chosen(task, variant)
        inner = unroll.begin(rule, chosen, theta, random.fold_in(seed, 0), problems)
        batches = random.fold_in(seed, 1)
        return unroll.run(rule, chosen, theta, inner, batches, num_steps, problems, "validation")[
            0
        ].outer_loss

    def train(seed):
        losses = run(theta, variant, random.seed(seed)).numpy()
        return losses.reshape(num_steps, rates, num_problems, variants).astype(np.float64)

    return train


class Chosen:
    """A task of which problem i is variant `variant[i]`."""

    def __init__(self, task, variant):
        self._task, self._variant = task, variant

    def draw(self, seed, num):
        return self._task.draw(seed, num, self._variant)

    def __getattr__(self, name):
        return getattr(self._task, name)


def _rounded(*values):
    return Reference(*(float(f"{value:.5g}") for value in values))


def _parse(values):
    return Reference(*map(float, values))


MEASURED = Measured("references.json", compute, _parse)
"""The `Reference`s of tasks."""
