"""Who computes the estimates of an outer step."""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

from lopt_keras.types import Theta
from meta.training.shards import Estimated, Shards, Unit
from meta.training.worker import Worker

Pair = tuple[int, int]
"""Of a shard and a program."""


class CrewFailed(RuntimeError):
    """A shard could not be computed, whoever tried, or a worker not be started."""


class Crew(abc.ABC):
    """Computes units, and keeps the state of each pair of a shard and a program.

    A state is replaced when the outer loop says so, with `keep`. What is computed and not kept
    has no effect.

    Attributes:
        trace_seconds: of tracing programs in this process.
        parallel: units that are computed at the same time.
    """

    trace_seconds = 0.0
    parallel = 1

    @abc.abstractmethod
    def begin(self, shards: Shards, theta: Theta) -> dict[Pair, list[Any]]:
        """Prepares the programs; the flat state of each pair before its first estimate: dict.

        Args:
            shards: `Shards`.
            theta: dict of tensors.
        """

    @abc.abstractmethod
    def restore(self, states: dict[Pair, list[Any]]) -> None:
        """Replaces the states of all pairs."""

    @abc.abstractmethod
    def states(self) -> dict[Pair, list[Any]]:
        """The state of every pair, after all that was kept."""

    @abc.abstractmethod
    def estimates(self, theta: Theta, units: Sequence[Unit]) -> list[Estimated]:
        """The `Estimated` of each unit, in their order.

        Raises:
            CrewFailed: if a unit fails again and again.
        """

    @abc.abstractmethod
    def keep(self, units: Sequence[Unit], made: Sequence[Estimated]) -> None:
        """The states after `estimates` count from now on."""

    @abc.abstractmethod
    def newest(
        self, theta: Theta, step: int, count: int, max_staleness: int
    ) -> tuple[list[Unit], list[Estimated]]:
        """The next estimates that arrive, whichever shards they are of; their states are kept.

        All the time each shard works on a unit, for the theta that was the newest when it began.

        Args:
            theta: dict of tensors.
            step: outer steps taken so far.
            count: of the estimates.
            max_staleness: an estimate for a theta that is older, in outer steps, is dropped.

        Returns:
            The units, and the `Estimated` of each.

        Raises:
            CrewFailed: as `estimates`.
        """

    @property
    def processes(self) -> list[int]:
        """The numbers of its processes, besides this one."""
        return []

    def told(self) -> Iterator[tuple[str, float]]:
        """Pairs of name and number for the summaries."""
        yield from ()

    def text(self) -> str:
        """For the progress bar."""
        return ""


class LocalCrew(Crew):
    """This process.

    Args:
        worker: `Worker`.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._states: dict[Pair, list[Any]] = {}

    def begin(self, shards: Shards, theta: Theta) -> dict[Pair, list[Any]]:
        self._shards = shards
        self._states = {pair: self._worker.init_state(theta, *pair) for pair in shards.pairs}
        programs = sorted({program for _, program in shards.pairs})
        self.trace_seconds = self._worker.trace(theta, programs)
        return self._states

    def restore(self, states: dict[Pair, list[Any]]) -> None:
        self._states = dict(states)

    def states(self) -> dict[Pair, list[Any]]:
        return self._states

    def estimates(self, theta: Theta, units: Sequence[Unit]) -> list[Estimated]:
        return [self._worker.estimate(theta, self._states[unit.pair], unit) for unit in units]

    def newest(
        self, theta: Theta, step: int, count: int, max_staleness: int
    ) -> tuple[list[Unit], list[Estimated]]:
        # One after the other: none is late.
        units = [self._shards.unit(shard, step) for shard in range(count)]
        made = self.estimates(theta, units)
        self.keep(units, made)
        return units, made

    def keep(self, units: Sequence[Unit], made: Sequence[Estimated]) -> None:
        for unit, estimated in zip(units, made, strict=True):
            assert estimated.state is not None  # It was computed here.
            self._states[unit.pair] = estimated.state
