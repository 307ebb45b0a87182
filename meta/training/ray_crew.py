"""A crew of worker processes, on this machine or on many, by Ray."""

import dataclasses
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lopt_keras.types import Arrays, Theta
from meta.training import interruption, ray_worker
from meta.training.config import MetaTrainingConfig
from meta.training.crew import Crew, Pair
from meta.training.ray_pool import Member, RayPool, Task
from meta.training.shards import Estimated, Shards, Unit

STATE_EVERY = 10
"""Estimates of a pair between two returns of its state: what a worker's death costs, at most."""

_PASSED_ON = ("TF_XLA_FLAGS", "XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")
_CONNECT_SECONDS = 10.0


@dataclasses.dataclass
class _Kept:
    """The state of a pair, as the driver knows it.

    Attributes:
        version: how many estimates had been made at the last state that was returned.
        state: that, as flat list of arrays.
        later: the units since then and references to their thetas, from which a worker can
            compute the newest state again.
        holder: the worker with the newest state.
    """

    version: int
    state: list[Any]
    later: list[tuple[Unit, Any]] = dataclasses.field(default_factory=list)
    holder: Member | None = None

    @property
    def newest(self) -> int:
        """The version after all that was kept."""
        return self.version + len(self.later)


@dataclasses.dataclass(eq=False)
class _Work:
    """What a task is about.

    Attributes:
        pair: of a shard and a program.
        unit: `Unit` to estimate; None if the pair's state is asked for.
        theta: reference.
        made_for: outer step of that theta.
    """

    pair: Pair
    unit: Unit | None = None
    theta: Any = None
    made_for: int = 0


class RayCrew(Crew):
    """Ray actors. A shard has its home on a worker, where its programs are compiled.

    A unit is a function of theta, a state and numbers. So it does not matter where it is
    computed, nor how often: a worker that dies is replaced, and its units are computed again.
    A state stays on its worker. It returns every ten estimates and for each checkpoint; if the
    worker is lost, another computes it again from there.

    Args:
        config: `MetaTrainingConfig`.
        worker_class: what runs in the processes.
        patience: seconds after which a worker that gives no sign is replaced. It is longer if
            estimates take long, and while a program is compiled.

    Raises:
        ValueError: if the cluster cannot be reached.
    """

    def __init__(
        self,
        config: MetaTrainingConfig,
        worker_class: type = ray_worker.RayWorker,
        patience: float = 120.0,
    ) -> None:
        self._config, self._class, self._patience = config, worker_class, patience
        self._ray, self._is_own = _connected(config)
        self._pool: RayPool | None = None
        self._kept: dict[Pair, _Kept] = {}
        self._theta: Any = None
        self._busy: dict[int, list[float]] = {}
        self._numbers: dict[int, int] = {}
        self._idle: set[int] = set()
        self._holders: dict[Pair, Member | None] = {}
        self._arrived: list[tuple[_Work, Estimated]] = []
        self._ages: list[int] = []
        self._mean_age, self._num_dropped = 0.0, 0
        self.parallel = config.num_workers

    def close(self) -> None:
        """Ends all workers, and the Ray that was started, or the connection made, for them."""
        if self._pool is not None:
            self._pool.close()
        if self._is_own:
            self._ray.shutdown()

    @property
    def processes(self) -> list[int]:
        members = [] if self._pool is None else self._pool.members
        return [member.process[0] for member in members if member.process is not None]

    def begin(self, shards: Shards, theta: Theta) -> dict[Pair, list[Any]]:
        """As `Crew.begin`.

        Raises:
            ValueError: if a worker has another version of something.
            CrewFailed: if a worker cannot be started.
        """
        self._shards = shards
        self._idle = set(range(len(shards)))
        num = self._config.num_workers
        home = {pair: pair[0] * num // len(shards) for pair in shards.pairs}
        self._pairs = [[pair for pair in shards.pairs if home[pair] == i] for i in range(num)]
        self._first_theta = _arrays(theta)
        self._pool = RayPool(
            self._ray, num, len(shards), self._start, self._take_start, self._patience
        )
        self._pool.wait_for_start()
        return {pair: kept.state for pair, kept in sorted(self._kept.items())}

    def restore(self, states: dict[Pair, list[Any]]) -> None:
        for pair, state in states.items():
            # No worker holds this one.
            self._kept[pair] = _Kept(self._kept[pair].newest + 1, [np.asarray(x) for x in state])

    def states(self) -> dict[Pair, list[Any]]:
        lacking = [_Work(pair) for pair, kept in self._kept.items() if kept.later]
        for work, state in self._all(lacking):
            kept = self._kept[work.pair]
            self._kept[work.pair] = _Kept(kept.newest, state, [], self._holders[work.pair])
        return {pair: kept.state for pair, kept in sorted(self._kept.items())}

    def estimates(self, theta: Theta, units: Sequence[Unit]) -> list[Estimated]:
        self._theta = self._ray.put(_arrays(theta))
        works = [_Work(unit.pair, unit, self._theta) for unit in units]
        found = dict(self._all(works))
        return [found[work] for work in works]

    def keep(self, units: Sequence[Unit], made: Sequence[Estimated]) -> None:
        for unit, estimated in zip(units, made, strict=True):
            self._keep(unit, self._theta, estimated)

    def newest(
        self, theta: Theta, step: int, count: int, max_staleness: int
    ) -> tuple[list[Unit], list[Estimated]]:
        self._theta = self._ray.put(_arrays(theta))
        while True:
            arrived, self._arrived = self._arrived, []
            for work, estimated in arrived:
                if step - work.made_for <= max_staleness:
                    self._arrived.append((work, estimated))
            self._num_dropped += len(arrived) - len(self._arrived)
            if len(self._arrived) >= count:
                break
            for shard in sorted(self._idle):
                self._submit(self._next_work(shard, step))
            self._idle.clear()
            for work, estimated in self._finished():
                with interruption.put_off():
                    assert work.unit is not None
                    self._keep(work.unit, work.theta, estimated)
                    self._idle.add(work.unit.shard)
                    self._arrived.append((work, estimated))
        taken, self._arrived = self._arrived[:count], self._arrived[count:]
        made = [estimated._replace(age=step - work.made_for) for work, estimated in taken]
        self._ages += [estimated.age for estimated in made]
        return [work.unit for work, _ in taken if work.unit is not None], made

    def told(self) -> Iterator[tuple[str, float]]:
        assert self._pool is not None
        yield "workers/alive", self._pool.num_alive
        yield "workers/replaced", self._pool.num_replaced
        for index, seconds in sorted(self._busy.items()):
            yield f"workers/{index}/seconds", float(np.mean(seconds))
        self._busy.clear()
        if self._config.max_staleness is not None:
            ages, self._ages = self._ages, []
            self._mean_age = float(np.mean(ages))
            yield "staleness/mean", self._mean_age
            yield "staleness/largest", max(ages)
            yield "staleness/dropped", self._num_dropped

    def text(self) -> str:
        assert self._pool is not None
        alive = f"{self._pool.num_alive} of {self.parallel} workers"
        if self._config.max_staleness is None:
            return alive
        return f"{alive}, staleness {self._mean_age:.1f}, {self._num_dropped} dropped"

    def _all(self, works: Sequence[_Work]) -> Iterator[tuple[_Work, Any]]:
        """Pairs of work and result, as they arrive."""
        missing = set(works)
        for work in works:
            self._submit(work)
        while missing:
            for work, result in self._finished():
                if work in missing:  # Not of a step that was interrupted.
                    missing.discard(work)
                    yield work, result

    def _submit(self, work: _Work) -> None:
        assert self._pool is not None
        self._pool.submit(Task(*work.pair, lambda member: self._call(member, work), work))

    def _call(self, member: Member, work: _Work) -> Any:
        kept = self._kept[work.pair]
        history = None if kept.holder is member else (kept.state, kept.later)
        if work.unit is None:
            return member.actor.state.remote(work.pair, kept.newest, history)
        wants_state = len(kept.later) + 1 >= STATE_EVERY
        return member.actor.estimate.remote(
            work.unit, kept.newest, work.theta, history, wants_state
        )

    def _finished(self) -> Iterator[tuple[_Work, Any]]:
        assert self._pool is not None
        for task, result in self._pool.finished():
            work, member = task.content, task.member
            assert member is not None
            if result is None:  # The state is not there, after an interruption.
                self._kept[work.pair].holder = None
                self._submit(work)
                continue
            self._holders[work.pair] = member
            if work.unit is not None:
                result = result._replace(worker=member.index)
                self._busy.setdefault(member.index, []).append(result.seconds)
            yield work, result

    def _keep(self, unit: Unit, theta: Any, estimated: Estimated) -> None:
        kept, holder = self._kept[unit.pair], self._holders[unit.pair]
        if estimated.state is not None:
            self._kept[unit.pair] = _Kept(kept.newest + 1, estimated.state, [], holder)
        else:
            kept.later.append((unit, theta))
            kept.holder = holder

    def _next_work(self, shard: int, step: int) -> _Work:
        # No two units of a shard have the same number, though two may be for one theta.
        number = max(step, self._numbers.get(shard, -1) + 1)
        self._numbers[shard] = number
        unit = self._shards.unit(shard, number)
        return _Work(unit.pair, unit, self._theta, step)

    def _start(self, index: int) -> tuple[Any, Any]:
        import ray.cloudpickle

        actor = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(self._class)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        handle = actor.remote(environment, self._threads())
        config = ray.cloudpickle.dumps(self._config)
        versions = ray_worker.versions()
        pairs, theta = self._pairs[index], self._first_theta
        return handle, handle.begin.remote(versions, config, pairs, theta)

    def _take_start(self, started: dict[str, Any]) -> tuple[int, str]:
        for pair, state in started["states"].items():
            self._kept.setdefault(pair, _Kept(0, state))
        return started["pid"], started["node"]

    def _threads(self) -> int:
        if self._config.ray_address is not None:
            return 1
        return max(1, len(os.sched_getaffinity(0)) // self.parallel)


def check_installed() -> None:
    """Raises unless Ray is installed.

    Raises:
        ValueError: that says how to install it.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "`num_workers` above 0 needs Ray, which is not installed: "
            "pip install 'lopt_keras[distributed]'"
        )


def _connected(config: MetaTrainingConfig) -> tuple[Any, bool]:
    """The module `ray`, connected to the cluster of the config, or to one of this machine.

    And whether it was connected here.
    """
    check_installed()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own is 15: beside other programs, workers would wait for most of the time.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    own: dict[str, Any] = {"address": "local", "num_cpus": config.num_workers}
    own |= {"include_dashboard": False}
    given = {"address": config.ray_address}
    try:
        if config.ray_address is not None:
            _check_reachable(config.ray_address)
        ray.init(
            **(own if config.ray_address is None else given),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises this very class where a node does not start.
        if config.ray_address is None:
            raise ValueError(
                f"Ray could not be started on this machine, for num_workers={config.num_workers}. "
                f"{error}"
            ) from error
        raise ValueError(
            "`ray_address` must be the address of a Ray cluster, or 'auto' on one of its "
            f"machines. Received: ray_address={config.ray_address!r}. {error}"
        ) from error
    return ray, True


def _check_reachable(address: str) -> None:
    """Raises if nobody listens there, which Ray finds out after minutes only."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _arrays(theta: Theta) -> Arrays:
    return {name: np.asarray(value) for name, value in theta.items()}
