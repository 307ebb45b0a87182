"""Losses of a tuned Adam, by which the losses of tasks are compared.

The file `references.json` beside this one holds them for the tasks of meta-training.
`python -m meta.tasks --references=2000` computes what is missing in it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras import rules
from lopt_keras.types import Array
from meta import random
from meta.inner.training import InnerTraining
from meta.tasks.sampling import distribution
from meta.tasks.scoring.measured import Measured

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
    def is_trainable(self) -> bool:
        """Whether Adam lowers the loss, by more than what rounding or luck might."""
        finite = bool(np.isfinite(self).all())
        return finite and self.initial - self.final > 0.02 * abs(self.initial)


def compute(configs: Sequence[Any], data_dir: Any = None) -> list[Reference]:
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


def adams(
    configs: Sequence[Any], num_steps: int, num_problems: int, data_dir: Any = None
) -> Callable[[int], Array]:
    """Adam at each of `LEARNING_RATES`, on some tasks that are one program.

    Returns:
        Function from a seed, an integer, to the validation losses before each step,
        `[num_steps, rates, num_problems, tasks]`.
    """
    task, rule = distribution.build(configs, data_dir), rules.Adam()
    variants, rates = len(configs), len(LEARNING_RATES)
    thetas = [rules.Adam(learning_rate=rate).init_theta() for rate in LEARNING_RATES]
    training = InnerTraining(
        task, rule, rates, variants * num_problems, num_steps, signals_known=False
    )
    variant = np.tile(np.arange(variants), num_problems)

    def train(seed: int) -> Array:
        curves = training(thetas, random.seed(seed), variant)
        losses = np.stack([own.held_out for own in curves], axis=1)
        return losses.reshape(num_steps, rates, num_problems, variants).astype(np.float64)

    return train


def _rounded(*values: float) -> Reference:
    return Reference(*(float(f"{value:.5g}") for value in values))


def _parse(values: Any) -> Reference:
    return Reference(*map(float, values))


MEASURED = Measured("references.json", compute, _parse)
"""The `Reference`s of tasks."""
