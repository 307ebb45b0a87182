"""Workers on Ray that sleep instead of computing, and what Ray costs their driver."""

import time

import model
import numpy as np
import runs

from meta.training import ray_crew
from meta.training.ray_worker import RayWorker
from meta.training.shards import Estimated, Shards, Unit, average

_SECONDS = "seconds"
"""An entry that goes out with theta: array, how long each shard is to sleep."""

_CALLS = 256
"""That wait at once, when the costs of one are measured."""

_PINGS, _LOOKS = 50, 20
_WARM_UP = 5


class Sleeper(RayWorker):
    """A worker that sleeps for the time of an estimate, and returns zeros of its size."""

    def make_worker(self, config):
        return self

    def init_state(self, theta, shard, program):
        return []

    def trace(self, theta, programs, quiet=False):
        return 0.0

    def sleep(self, theta, shard):
        time.sleep(float(theta[_SECONDS][shard]))
        return {name: np.zeros_like(x) for name, x in theta.items() if name != _SECONDS}

    def estimate(self, unit, version, theta, history, wants_state):
        start = time.perf_counter()
        gradient = self.sleep(theta, unit.shard)
        return Estimated(gradient, [], {}, time.perf_counter() - start, is_new=False)

    def ping(self):
        """Nothing."""


class Sleepers:
    """A crew of sleepers, one shard each.

    Args:
        theta: dict of arrays.
        num_workers: how many.
    """

    def __init__(self, theta, num_workers):
        self._theta, self._num = theta, num_workers
        self._crew = ray_crew.RayCrew(runs.config("unused", 1, num_workers, num_workers), Sleeper)
        self._shards, self._step = Shards(0, num_workers, [1.0]), 0
        self._crew.begin(self._shards, self._with_seconds(0.0))

    def close(self):
        """Ends them."""
        self._crew.close()

    def _with_seconds(self, seconds):
        return {**self._theta, _SECONDS: np.broadcast_to(np.float32(seconds), self._num)}

    def steps_per_second(self, num_steps, num_shards, seconds, max_staleness=None):
        """Outer steps per second.

        Args:
            num_steps: to take.
            num_shards: the first of them are used.
            seconds: of an estimate; a number, or an array with one for each shard.
            max_staleness: if it is not None, no step waits for its shards; all are used.
        """
        theta, begin = self._with_seconds(seconds), 0.0
        for i in range(_WARM_UP + num_steps):
            if i == _WARM_UP:
                begin = time.perf_counter()
            if max_staleness is None:
                units = [self._shards.unit(shard, self._step) for shard in range(num_shards)]
                made = self._crew.estimates(theta, units)
                self._crew.keep(units, made)
            else:
                _, made = self._crew.newest(theta, self._step, num_shards, max_staleness)
            average([estimated.gradient for estimated in made])
            self._step += 1
        return num_steps / (time.perf_counter() - begin)


def engine(theta, add, apply):
    """The `model.Engine` of this machine, but for `add` and `apply`, which are given.

    Of times that were taken several times, the least: other programs only add to it.
    """
    import ray  # Only here: the model needs none.

    actor = ray.remote(num_cpus=0)(Sleeper).remote({}, 1)
    ray.get(actor.ping.remote())
    round_trips = [_timed(lambda: ray.get(actor.ping.remote())) for _ in range(_PINGS)]
    own = {**theta, _SECONDS: np.zeros(1, "float32")}
    put = min(_timed(lambda: ray.put(own)) for _ in range(_PINGS))
    now = ray.put(own)
    later = ray.put({**own, _SECONDS: np.ones(1, "float32")})

    def submit(reference):
        return actor.estimate.remote(Unit(0, 0, 0), 0, reference, None, False)

    first = submit(later)  # While it sleeps, all others wait.
    references = [first]
    submitted = _timed(lambda: references.extend(submit(now) for _ in range(_CALLS)))
    looks = {
        n: min(_timed(lambda n=n: _look(ray, references[:n])) for _ in range(_LOOKS))
        for n in (2, _CALLS)
    }
    each = (looks[_CALLS] - looks[2]) / (_CALLS - 2)
    ray.wait(references, num_returns=len(references))
    collected = _timed(lambda: [ray.get(reference) for reference in references])
    ray.kill(actor)
    return model.Engine(
        put=put,
        submit=submitted / _CALLS,
        look=max(0.0, looks[2] - 2 * each),
        look_each=max(0.0, each),
        collect=collected / len(references),
        add=add,
        apply=apply,
        latency=min(round_trips) / 2,
        per_byte=0.0,
    )


def _look(ray, references):
    """As the pool does, but for the wait itself."""
    ray.wait(references, num_returns=1, timeout=0)
    ray.wait(references, num_returns=len(references), timeout=0)


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
