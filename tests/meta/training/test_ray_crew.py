"""Workers in processes of their own: the same bits as in this one, whatever happens to them."""

import importlib.util
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from meta import tasks
from meta.training import ray_crew, ray_pool
from meta.training.config import MetaTrainingConfig
from meta.training.crew import CrewFailed, LocalCrew
from meta.training.ray_pool import RayPool, Task
from meta.training.ray_worker import RayWorker, versions
from meta.training.run import started, train
from meta.training.shards import Estimated, Shards


def make(out_dir, **kwargs):
    arguments = {
        "task": tasks.get("quadratic"),
        "rule": "sgd",
        "num_outer_steps": 16,
        "num_particles": 4,
        "unroll_length": 2,
        "horizon": 4,
        "estimator": "pes",
        "num_shards": 3,
        "checkpoint_every": 6,
        **kwargs,
    }
    return MetaTrainingConfig(str(out_dir), **arguments)


def test_a_killed_worker_and_another_number_of_workers_change_no_bit(tmp_path):
    pytest.importorskip("ray")
    whole = train(make(tmp_path / "whole"))
    with started(make(tmp_path / "run", num_workers=2)) as training:
        loop = training.loop
        loop.run(9)  # Three steps after the checkpoint at 6, and one at 9.
        pid = training.processes[0]
        os.kill(pid, signal.SIGKILL)
        loop.run(14)
        assert pid not in training.processes
        left = training.processes
    assert left
    assert not any(os.path.exists(f"/proc/{pid}") for pid in left)
    resumed = train(make(tmp_path / "run"))
    for name, value in whole.loop.theta.items():
        np.testing.assert_array_equal(resumed.loop.theta[name], value)


def test_without_ray_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs Ray.*lopt_keras\[distributed\]"):
        train(make(tmp_path / "x", num_workers=2))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no such host:6379"])
def test_a_cluster_that_cannot_be_reached_is_named(tmp_path, address):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=f"`ray_address` must be.*Received: .*{address}"):
        train(make(tmp_path / "x", num_workers=2, ray_address=address))
    assert not (tmp_path / "x").exists()


class Error(Exception):
    """Of a worker that is lost."""


class TaskError(Error):
    """Of a task that failed."""

    cause = MemoryError("no memory")


class FakeRay:
    """Calls have their results at once. A result that is an error is raised."""

    class exceptions:
        RayError, RayTaskError = Error, TaskError

    def __init__(self):
        self.ended = []

    def wait(self, references, num_returns, timeout):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        if isinstance(reference.result, Exception):
            raise reference.result
        return reference.result

    def kill(self, actor, no_restart):
        self.ended.append(actor)

    def put(self, value):
        return value

    def cluster_resources(self):
        return {"CPU": 1.0}

    def remote(self, **options):
        return lambda cls: SimpleNamespace(remote=lambda *args: Actor(cls(*args)))


class Actor:
    """Calls the methods of a worker."""

    def __init__(self, worker):
        self._worker = worker

    def __getattr__(self, name):
        method = getattr(self._worker, name)
        return SimpleNamespace(remote=lambda *args: Reference(method(*args)))


class Reference:
    def __init__(self, result):
        self.result = result


def make_pool(ray, num_workers=2, num_shards=4, patience=60.0):
    started = []

    def start(index):
        started.append(index)
        return f"actor {len(started)}", Reference((index, "node"))

    return RayPool(ray, num_workers, num_shards, start, lambda result: result, patience)


def run(pool, tasks):
    for task in tasks:
        pool.submit(task)
    done = []
    while len(done) < len(tasks):
        done += pool.finished()
    return done


def test_a_task_goes_to_the_home_of_its_shard():
    pool = make_pool(FakeRay())
    pool.wait_for_start()
    done = run(pool, [Task(shard, 0, lambda member: Reference(member.index)) for shard in range(4)])
    assert [result for task, result in sorted(done, key=lambda x: x[0].shard)] == [0, 0, 1, 1]


def test_the_tasks_of_a_lost_worker_are_done_again():
    ray = FakeRay()
    pool = make_pool(ray)
    pool.wait_for_start()
    results = [Error("lost"), "again"]
    (done,) = run(pool, [Task(0, 0, lambda member: Reference(results.pop(0)))])
    assert done[1] == "again"
    assert pool.num_replaced == 1
    assert ray.ended == ["actor 1"]


def test_tasks_are_done_though_their_worker_is_gone_when_they_are_handed_out():
    ray = FakeRay()
    pool = make_pool(ray)
    pool.wait_for_start()

    def call(member):
        if member.actor == "actor 1":
            raise Error("gone")
        return Reference(member.actor)

    done = run(pool, [Task(shard, 0, call) for shard in (0, 1, 2)])
    assert [result for task, result in sorted(done, key=lambda x: x[0].shard)] == [
        *("actor 3", "actor 3"),
        "actor 2",
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TaskError(), "on worker 1: no memory"),
        (Error("out of memory"), "as worker 1 was lost: out of memory"),
    ],
)
def test_a_shard_that_fails_three_times_is_named(error, reason):
    pool = make_pool(FakeRay())
    pool.wait_for_start()
    with pytest.raises(CrewFailed, match=f"Shard 2 failed 3 times, at last {reason}"):
        run(pool, [Task(2, 0, lambda member: Reference(error))])


def test_a_run_that_stops_for_its_crew_keeps_the_last_outer_step(tmp_path, monkeypatch):
    estimates = LocalCrew.estimates

    def failing(crew, theta, units):
        if units[0].step == 5:
            raise CrewFailed("Shard 1 failed 3 times")
        return estimates(crew, theta, units)

    with monkeypatch.context() as patch:
        patch.setattr(LocalCrew, "estimates", failing)
        with pytest.raises(CrewFailed, match=r"Shard 1 failed 3 times\. Outer step 5 is kept"):
            train(make(tmp_path))
    with started(make(tmp_path)) as training:
        assert training.loop.step == 5


class HangingRay(FakeRay):
    """Nothing comes of what has no result."""

    def wait(self, references, num_returns, timeout):
        arrived = [reference for reference in references if reference.result is not None]
        return arrived[:num_returns], []


def test_a_worker_that_gives_no_sign_is_ended_and_replaced(monkeypatch):
    ended = []
    monkeypatch.setattr(ray_pool, "_kill", lambda ray, *process: ended.append(process))
    monkeypatch.setattr(ray_pool, "_COMPILES_LONGER", 1)
    ray, results = HangingRay(), [None, "again"]
    pool = make_pool(ray, patience=0.0)
    pool.wait_for_start()
    (done,) = run(pool, [Task(2, 0, lambda member: Reference(results.pop(0)))])
    assert done[1] == "again"
    # By Ray, and from beside it: a process that hangs does not hear Ray.
    assert ray.ended == ["actor 2"]
    assert ended == [(1, "node")]


def test_to_end_a_process_that_has_ended_is_no_error(monkeypatch):
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *args, **kwargs: None)
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, strategies)
    given = []

    def remote(**_):  # Does not call the function.
        called = SimpleNamespace(remote=lambda: None)
        return lambda function: (
            given.append(function) or SimpleNamespace(options=lambda **_: called)
        )

    process = subprocess.Popen(["sleep", "inf"])
    ray_pool._kill(SimpleNamespace(remote=remote), process.pid, "node")
    given[0]()
    assert process.wait() == -signal.SIGKILL
    given[0]()


def test_a_worker_that_is_refused_stops_the_start():
    class Refused(Error):
        cause = ValueError("All workers must have the driver's code")

    def start(index):
        return "actor", Reference(Refused() if index else (index, "node"))

    pool = RayPool(FakeRay(), 2, 2, start, lambda result: result, patience=60.0)
    with pytest.raises(ValueError, match="All workers must have the driver's code"):
        pool.wait_for_start()


def test_a_worker_that_never_starts_is_named():
    def start(index):
        return "actor", Reference(Error("no room"))

    pool = RayPool(FakeRay(), 2, 2, start, lambda result: result, patience=60.0)
    with pytest.raises(CrewFailed, match="Worker [01] could not be started in 10 tries.*no room"):
        pool.wait_for_start()


def test_a_worker_of_other_versions_is_refused():
    worker = RayWorker.__new__(RayWorker)
    with pytest.raises(ValueError, match="All workers must have the driver's code, 0000"):
        worker.begin({**versions(), "code": "0000"}, b"", [], {})


def test_only_the_first_start_waits_for_all_workers(monkeypatch):
    """A machine that is lost does not stop the others, when no other takes its place."""
    ray, starts = HangingRay(), [(0, "node"), (1, "node"), None]
    pool = RayPool(
        ray, 2, 2, lambda i: (i, Reference(starts.pop(0))), lambda result: result, patience=60.0
    )
    pool.wait_for_start()
    pool._replace(pool.members[1])
    monkeypatch.setattr(ray_pool, "_START_SECONDS", 0.0)
    pool._patience = 0.0
    (done,) = run(pool, [Task(1, 0, lambda member: Reference(member.index))])
    assert done[1] == 0
    with pytest.raises(CrewFailed, match=r"Worker 1 has not started in 0 s. The cluster has 1 CPU"):
        pool.wait_for_start()


class CountingWorker:
    """Its state is the list of the units that it was computed from."""

    def __init__(self, environment, threads):
        self._states = {}

    def begin(self, versions, config, pairs, theta):
        self._states = {pair: (0, []) for pair in pairs}
        return {"pid": 0, "node": "", "states": {pair: [] for pair in pairs}}

    def estimate(self, unit, version, theta, history, wants_state):
        state = self.state(unit.pair, version, history)
        if state is None:
            return None
        state = [*state, unit.step]
        self._states[unit.pair] = version + 1, state
        metrics = {"meta_loss": float(unit.shard)}
        return Estimated(theta, state if wants_state else None, metrics, 0.1, False)

    def state(self, pair, version, history):
        known, state = self._states.get(pair, (None, None))
        if known != version:
            if history is None:
                return None
            state = [*history[0], *(unit.step for unit, _ in history[1])]
        return state


class LateRay(FakeRay):
    """The results of the last reference of all arrive after so many looks."""

    looks = 0

    def wait(self, references, num_returns, timeout):
        late = [r for r in references if getattr(r.result, "metrics", {}).get("meta_loss") == 2.0]
        arrived = [r for r in references if r not in late]
        if not timeout:
            self.looks += 1
        if late and (not arrived or self.looks % 4 == 0):
            arrived = references
        return arrived, []


def make_crew(tmp_path, monkeypatch, ray, **kwargs):
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_crew, "_connected", lambda config: (ray, False))
    config = make(tmp_path, num_workers=3, ray_address="x", **kwargs)
    crew = ray_crew.RayCrew(config, CountingWorker)
    crew.begin(Shards(0, 3, [1.0]), {"a": np.float32(0.0)})
    return crew


def test_states_are_those_of_all_that_was_kept(tmp_path, monkeypatch):
    """Whether a state was returned, is with its worker, or was lost with it."""
    ray = FakeRay()
    crew = make_crew(tmp_path, monkeypatch, ray)
    cut = Shards(0, 3, [1.0])
    for step in range(25):
        units = [cut.unit(shard, step) for shard in range(3)]
        made = crew.estimates({"a": np.float32(step)}, units)
        assert [estimated.metrics["meta_loss"] for estimated in made] == [0.0, 1.0, 2.0]
        if step == 7:
            # As after an interruption: the workers are one step ahead.
            made = crew.estimates({"a": np.float32(step)}, units)
        crew.keep(units, made)
        if step in (4, 12):
            crew._pool._replace(crew._pool.members[1])
    assert crew.states() == {(shard, 0): list(range(25)) for shard in range(3)}
    assert crew._pool.num_replaced == 2
    crew.restore({(shard, 0): [] for shard in range(3)})
    assert crew.states() == {(shard, 0): [] for shard in range(3)}


def test_nobody_waits_for_a_late_worker(tmp_path, monkeypatch):
    """Its estimates count while they are young enough."""
    counts = {}
    for max_staleness in (0, 10):
        crew = make_crew(tmp_path, monkeypatch, LateRay(), max_staleness=max_staleness)
        ages, shards = [], []
        for step in range(40):
            units, made = crew.newest({"a": np.float32(step)}, step, 3, max_staleness)
            assert len(units) == len(made) == 3
            assert all(e.gradient["a"] == step - e.age for e in made)
            ages += [estimated.age for estimated in made]
            shards += [unit.shard for unit in units]
        assert max(ages) <= max_staleness
        told = dict(crew.told())
        assert told["staleness/largest"] == max(ages)
        counts[max_staleness] = shards.count(2), told["staleness/dropped"]
        # No unit of a shard is computed twice.
        for state in crew.states().values():
            assert len(set(map(int, state))) == len(state)
    assert counts[0][1] > 0
    assert counts[10][1] == 0
    assert 0 < counts[10][0] < 40
