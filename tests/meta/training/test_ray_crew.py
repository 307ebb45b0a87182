"""Workers in processes of their own: the same bits as in this one, whatever happens to them."""

import importlib.util
import os
import signal

import numpy as np
import pytest

from meta import tasks
from meta.training.config import MetaTrainingConfig
from meta.training.crew import CrewFailed
from meta.training.ray_pool import RayPool, Task
from meta.training.ray_worker import RayWorker, versions
from meta.training.run import started, train


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


class Reference:
    def __init__(self, result):
        self.result = result


def make_pool(ray, num_workers=2, num_shards=4):
    started = []

    def start(index):
        started.append(index)
        return f"actor {len(started)}", Reference((index, "node"))

    return RayPool(ray, num_workers, num_shards, start, lambda result: result, patience=60.0)


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


def test_a_shard_that_fails_three_times_is_named():
    pool = make_pool(FakeRay())
    pool.wait_for_start()
    with pytest.raises(CrewFailed, match=r"Shard 2 failed 3 times, .* worker 1: no memory"):
        run(pool, [Task(2, 0, lambda member: Reference(TaskError()))])


def test_a_worker_of_other_versions_is_refused():
    worker = RayWorker.__new__(RayWorker)
    with pytest.raises(ValueError, match="All workers must have the driver's code, 0000"):
        worker.begin({**versions(), "code": "0000"}, b"", [], {})
