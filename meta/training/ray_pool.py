"""Worker processes of Ray, replaced when they die, and the tasks that they work on."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from export import backend
from meta.training.crew import CrewFailed

_TRIES = 3
"""Of a task."""

_START_TRIES = 10
"""Of a worker, one after the other. Whoever ends processes may well hit one that starts."""

_START_SECONDS = 1800.0
"""In which all workers must have started, and later on, if all were lost, one of them."""

_COMPILES_LONGER = 30
"""How much more patience there is with a worker that compiles a program."""

_TIMES_LONGEST = 20
"""A worker is given at least so many times the longest time of a task that is compiled."""

_POLL_SECONDS = 1.0


@dataclasses.dataclass(eq=False)
class Task:
    """Something for a worker to do.

    Attributes:
        shard: whose work it is, by which its worker is chosen.
        program: that it needs.
        call: function from a `Member` to Ray's reference of the result.
        content: the caller's own.
        failures: how often it failed.
        member: who has done it.
    """

    shard: int
    program: int
    call: Callable[["Member"], Any]
    content: Any = None
    failures: int = 0
    member: "Member | None" = None


@dataclasses.dataclass(eq=False)
class Member:
    """A worker process.

    Attributes:
        index: of the worker. One that replaces another has its index.
        actor: Ray's handle.
        is_ready: whether it has started.
        since: when it was started, or last answered.
        process: `(pid, node)`, when it has started.
        tasks: dict from Ray's references to its tasks, in the order in which it works on them.
        compiled: the programs that it has used.
    """

    index: int
    actor: Any
    is_ready: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)
    process: tuple[int, str] | None = None
    tasks: dict[Any, Task] = dataclasses.field(default_factory=dict)
    compiled: set[int] = dataclasses.field(default_factory=set)


class RayPool:
    """Workers by index, each with the shards that have their home there.

    A task goes to the home of its shard. While that worker is being replaced, it goes to another
    one that has its program; after a while, to any. A task whose worker is lost is done again by
    another: so it must be harmless to do it twice.

    Args:
        ray: the module, connected.
        num_workers: how many.
        num_shards: they are divided among the workers in contiguous parts.
        start: function from an index to an actor and a reference to the result of its start.
        take_start: function of that result; it gives the process and its node.
        patience: seconds without a sign after which a worker is replaced.
    """

    def __init__(
        self,
        ray: Any,
        num_workers: int,
        num_shards: int,
        start: Callable[[int], tuple[Any, Any]],
        take_start: Callable[[Any], tuple[int, str]],
        patience: float,
    ) -> None:
        self._ray, self._patience = ray, patience
        self._start_actor, self._take_start_result = start, take_start
        self._homes = [shard * num_workers // num_shards for shard in range(num_shards)]
        self._waiting: list[Task] = []
        self._longest = 0.0
        self._start_failures = [0] * num_workers
        self._starts: dict[Any, Member] = {}
        self.num_replaced = 0
        self.members: list[Member] = []
        for index in range(num_workers):
            self.members.append(self._started(index))

    @property
    def num_alive(self) -> int:
        """Workers that have started."""
        return sum(member.is_ready for member in self.members)

    def wait_for_start(self) -> None:
        """Waits until all workers have started.

        Raises:
            CrewFailed: if one does not.
        """
        while self._starts:
            self._listen()
            self._replace_silent()
            self._check_starts()

    def submit(self, task: Task) -> None:
        """Has a task done, now or when a worker is there."""
        self._waiting.append(task)
        self._hand_out()

    def finished(self) -> list[tuple[Task, Any]]:
        """Waits a moment for results: list of a task and its result, maybe empty.

        Raises:
            CrewFailed: if a task has failed three times, or a worker cannot be started.
        """
        self._hand_out()
        results = self._listen()
        self._replace_silent()
        if not self.num_alive:  # Otherwise the others go on without those that do not start.
            self._check_starts()
        return results

    def close(self) -> None:
        """Ends all workers."""
        for member in self.members:
            self._end(member)
        self.members, self._starts = [], {}

    def _started(self, index: int) -> Member:
        actor, reference = self._start_actor(index)
        member = Member(index, actor)
        self._starts[reference] = member
        return member

    def _hand_out(self) -> None:
        # A worker that turns out to be gone adds its tasks to those that wait.
        waiting, self._waiting = self._waiting, []
        left = []
        for task in waiting:
            member = self._member_for(task)
            if member is None:
                left.append(task)
                continue
            if not member.tasks:
                member.since = time.monotonic()
            try:
                member.tasks[task.call(member)] = task
            except self._ray.exceptions.RayError:
                left.append(task)  # It is gone, as its other references will tell.
                self._replace(member)
        self._waiting = [*self._waiting, *left]

    def _member_for(self, task: Task) -> Member | None:
        home = self.members[self._homes[task.shard]]
        if home.is_ready:
            return home
        ready = [member for member in self.members if member.is_ready]
        able = [member for member in ready if task.program in member.compiled]
        if not able and time.monotonic() - home.since > self._patience:
            able = ready
        return min(able, key=lambda member: len(member.tasks), default=None)

    def _listen(self) -> list[tuple[Task, Any]]:
        owners = {reference: m for m in self.members for reference in m.tasks}
        references = [*owners, *self._starts]
        if not references:
            time.sleep(_POLL_SECONDS / 10)
            return []
        # All that have arrived, not just the first.
        arrived, _ = self._ray.wait(references, num_returns=1, timeout=_POLL_SECONDS)
        if arrived:
            arrived, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        results = []
        for reference in arrived:
            if reference in self._starts:
                self._take_start(reference)
            elif (owner := owners.get(reference)) and reference in owner.tasks:
                # It was not taken away in the meantime.
                results += self._take_result(owner, reference)
        return results

    def _take_start(self, reference: Any) -> None:
        member = self._starts.pop(reference)
        try:
            started = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), ValueError):
                raise ValueError(str(cause)) from error  # It would fail again.
            self._start_failures[member.index] += 1
            if self._start_failures[member.index] >= _START_TRIES:
                raise CrewFailed(
                    f"Worker {member.index} could not be started in {_START_TRIES} tries, "
                    f"at last: {_cause(error)}"
                ) from error
            self._replace(member)
            return
        member.process = self._take_start_result(started)
        self._start_failures[member.index] = 0
        member.is_ready, member.since = True, time.monotonic()

    def _take_result(self, member: Member, reference: Any) -> list[tuple[Task, Any]]:
        task = member.tasks[reference]
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            del member.tasks[reference]
            self._fail(task, f"on worker {member.index}: {_cause(error)}")
            self._waiting.append(task)
            return []
        except self._ray.exceptions.RayError as error:
            self._lose(member, _cause(error))
            return []
        elapsed = time.monotonic() - member.since
        if task.program in member.compiled:
            self._longest = max(self._longest, elapsed)
        member.since = time.monotonic()
        member.compiled.add(task.program)
        del member.tasks[reference]
        task.member = member
        return [(task, result)]

    def _lose(self, member: Member, reason: str, hangs: bool = False) -> None:
        """Replaces a worker. The task that it was working on counts as failed."""
        if member.tasks:
            current = next(iter(member.tasks.values()))
            self._fail(current, f"as worker {member.index} was lost: {reason}")
        self._replace(member, hangs)

    def _fail(self, task: Task, reason: str) -> None:
        task.failures += 1
        if task.failures >= _TRIES:
            raise CrewFailed(f"Shard {task.shard} failed {_TRIES} times, at last {reason}")

    def _replace(self, member: Member, hangs: bool = False) -> None:
        if self.members[member.index] is not member:
            return
        self._waiting = [*member.tasks.values(), *self._waiting]
        member.tasks = {}
        self._end(member, hangs)
        self.num_replaced += 1
        self.members[member.index] = self._started(member.index)

    def _replace_silent(self) -> None:
        """Replaces workers that hang."""
        for member in list(self.members):
            limit, now = max(self._patience, _TIMES_LONGEST * self._longest), time.monotonic()
            if member.tasks:
                current = next(iter(member.tasks.values()))
                if current.program not in member.compiled:
                    limit *= _COMPILES_LONGER
                if now - member.since > limit:
                    self._lose(member, f"it gave no sign for {limit:.0f} s", hangs=True)

    def _check_starts(self) -> None:
        for member in self.members:
            if not member.is_ready and time.monotonic() - member.since > _START_SECONDS:
                cpus = self._ray.cluster_resources().get("CPU", 0)
                raise CrewFailed(
                    f"Worker {member.index} has not started in {_START_SECONDS:.0f} s. The cluster "
                    f"has {cpus:.0f} CPUs; a worker takes one."
                )

    def _end(self, member: Member, hangs: bool = False) -> None:
        self._starts = {r: m for r, m in self._starts.items() if m is not member}
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor, no_restart=True)
        if hangs and member.process is not None:
            _kill(self._ray, *member.process)


def _kill(ray: Any, pid: int, node: str) -> None:
    """Ends a process from beside it: one that hangs does not hear Ray."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)

    def end() -> None:  # Ray takes no function that is built in.
        with contextlib.suppress(ProcessLookupError):  # Ray may have ended it after all.
            os.kill(pid, signal.SIGKILL)

    remote = ray.remote(num_cpus=0, max_retries=0)(end)
    remote.options(scheduling_strategy=there).remote()


def _cause(error: BaseException) -> str:
    return backend.reason(getattr(error, "cause", None) or error)
