"""What a meta-training is cut into: shards, whatever computes them and wherever."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Arrays, Tensor
from meta import random

_OTHER_SHARDS = 3  # What comes after the seeds of the outer step, which are those of shard 0.


class Unit(NamedTuple):
    """The work of one shard for one outer step.

    Attributes:
        shard: index.
        program: index of the estimator that the shard uses.
        step: the number from which its randomness comes, with the seed and the shard. In
            synchronous training it is the number of outer steps taken so far.
    """

    shard: int
    program: int
    step: int

    @property
    def pair(self) -> tuple[int, int]:
        """Whose state it reads and replaces: `(shard, program)`."""
        return self.shard, self.program


class Estimated(NamedTuple):
    """What a unit gives.

    Attributes:
        gradient: dict of arrays, as theta.
        state: list of arrays or tensors, the flat state of the estimator after it; None if it
            stays where it was computed.
        metrics: dict of floats.
        seconds: that it took where it was computed.
        is_new: whether its program was compiled in these seconds.
        worker: index of the worker that computed it.
        age: outer steps that were taken since its theta.
    """

    gradient: Arrays
    state: list[Any] | None
    metrics: dict[str, Any]
    seconds: float
    is_new: bool
    worker: int = 0
    age: int = 0


class Shards:
    """Which program each shard uses at each outer step.

    The programs lie side by side on a line, each as long as its weight. The line is cut into as
    many equal parts as there are shards, and a shard draws from its own part. So all programs
    are drawn in proportion to their weights, and a shard needs only its share of them.

    Args:
        seed: integer.
        num_shards: how many.
        weights: of the programs, in any unit.
    """

    def __init__(self, seed: int, num_shards: int, weights: Sequence[float]) -> None:
        self._seed, self._num = seed, num_shards
        self._ends = np.cumsum(weights)

    def __len__(self) -> int:
        return self._num

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of a shard and a program that it may use, sorted: list."""
        return [(shard, program) for shard in range(self._num) for program in self.programs(shard)]

    def programs(self, shard: int) -> range:
        """The programs that a shard may use."""
        low, high = (float(self._ends[-1]) * (shard + i) / self._num for i in (0, 1))
        first = np.searchsorted(self._ends, low, side="right")
        return range(int(first), int(np.searchsorted(self._ends, high, side="left")) + 1)

    def unit(self, shard: int, step: int) -> Unit:
        """The `Unit` of a shard, drawn from (seed, shard, step)."""
        drawn = np.random.default_rng([self._seed, step, shard]).random()
        position = (shard + drawn) / self._num * self._ends[-1]
        programs = self.programs(shard)
        program = int(np.searchsorted(self._ends, position, side="right"))
        return Unit(shard, min(max(program, programs[0]), programs[-1]), step)


def seed_of(seed: Tensor, shard: int) -> Tensor:
    """The seed of a shard, `[2]` int32, from that of the run, which is the seed of shard 0."""
    if shard == 0:
        return seed
    return random.fold_in(random.fold_in(seed, _OTHER_SHARDS), shard)


def average(gradients: Sequence[Mapping[str, Any]], count: float | None = None) -> Arrays:
    """The mean of the shards' gradients, added in their order: dict of float32 arrays.

    An entry of a shard that is not finite counts as zero.

    Args:
        gradients: dicts of arrays, as theta.
        count: what the sum is divided by; defaults to their number.
    """
    count = len(gradients) if count is None else count
    total: Arrays = {}
    for gradient in gradients:
        for name, value in gradient.items():
            usable = np.where(np.isfinite(value), value, np.float32(0.0))
            total[name] = total[name] + usable if name in total else usable
    return {name: value / np.float32(count) for name, value in total.items()}
