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

_PINGS, _LOOKS, _STATES = 50, 20, 20
_WARM_UP = 5
_IDLE = 3.0
"""Seconds in which the driver only waits."""


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

    def zeros(self, num_bytes):
        """As large as a state."""
        return np.zeros(num_bytes, "uint8")

    def ping(self):
        """Nothing."""


class Sleepers:
    """A crew of sleepers.

    Args:
        theta: dict of arrays.
        num_workers, num_shards: how many.
    """

    def __init__(self, theta, num_workers, num_shards):
        self._theta, self._num = theta, num_shards
        config = runs.config("unused", 1, num_shards, num_workers)
        self._crew = ray_crew.RayCrew(config, Sleeper)
        self._shards, self._step = Shards(0, num_shards, [1.0]), 0
        self._crew.begin(self._shards, self._with_seconds([]))
        self._idle = _used(lambda: time.sleep(_IDLE)) / _IDLE

    def close(self):
        """Ends them."""
        self._crew.close()

    def _with_seconds(self, seconds):
        slept = np.zeros(self._num, "float32")
        slept[: np.size(seconds)] = seconds
        return {**self._theta, _SECONDS: slept}

    def run(self, num_steps, num_shards, seconds, max_staleness=None):
        """Takes outer steps: pair of steps per second, and the driver's processor time of a step.

        That time is what it takes more than a driver that only waits.

        Args:
            num_steps: to take.
            num_shards: the first of them are used.
            seconds: of an estimate; array with one for each shard that is used.
            max_staleness: if it is not None, no step waits for its shards; all are used.
        """
        theta, begin = self._with_seconds(seconds), (0.0, 0.0)
        for i in range(_WARM_UP + num_steps):
            if i == _WARM_UP:
                begin = time.perf_counter(), time.process_time()
            if max_staleness is None:
                units = [self._shards.unit(shard, self._step) for shard in range(num_shards)]
                made = self._crew.estimates(theta, units)
                self._crew.keep(units, made)
            else:
                _, made = self._crew.newest(theta, self._step, num_shards, max_staleness)
            average([estimated.gradient for estimated in made])
            self._step += 1
        elapsed, used = time.perf_counter() - begin[0], time.process_time() - begin[1]
        return num_steps / elapsed, (used - self._idle * elapsed) / num_steps


def engine(theta, state_bytes, add, apply):
    """The `model.Engine` of this machine, but for `add` and `apply`, which are given.

    Costs of the driver are processor time of all its threads, which other programs do not add to.
    """
    import ray  # Only here: the model needs none.

    actor = ray.remote(num_cpus=0)(Sleeper).remote({}, 1)
    ray.get(actor.ping.remote())
    begin = time.perf_counter()
    for _ in range(_PINGS):
        ray.get(actor.ping.remote())
    round_trip = (time.perf_counter() - begin) / _PINGS
    own = {**theta, _SECONDS: np.zeros(1, "float32")}
    put = _used(lambda: [ray.put(own) for _ in range(_PINGS)]) / _PINGS
    now = ray.put(own)
    later = ray.put({**own, _SECONDS: np.ones(1, "float32")})

    def submit(reference):
        return actor.estimate.remote(Unit(0, 0, 0), 0, reference, None, False)

    first = submit(later)  # While it sleeps, all others wait.
    references = [first]
    submitted = _used(lambda: references.extend(submit(now) for _ in range(_CALLS)))
    looks = {
        n: _used(lambda n=n: [_look(ray, references[:n]) for _ in range(_LOOKS)]) / _LOOKS
        for n in (2, _CALLS)
    }
    each = (looks[_CALLS] - looks[2]) / (_CALLS - 2)

    def collect(references):
        ray.wait(references, num_returns=len(references))
        for reference in references:
            ray.get(reference)

    collected = _used(lambda: collect(references)) / len(references)
    small, large = (
        _used(lambda n=n: collect([actor.zeros.remote(n) for _ in range(_STATES)])) / _STATES
        for n in (1, state_bytes)
    )
    ray.kill(actor)
    return model.Engine(
        put=put,
        submit=submitted / _CALLS,
        look=max(0.0, looks[2] - 2 * each),
        look_each=max(0.0, each),
        collect=collected,
        add=add,
        apply=apply,
        latency=round_trip / 2,
        per_byte=0.0,
        state_byte=max(0.0, large - small) / state_bytes,
    )


def _look(ray, references):
    """As the pool does, but for the wait itself."""
    ray.wait(references, num_returns=1, timeout=0)
    ray.wait(references, num_returns=len(references), timeout=0)


def _used(function):
    start = time.process_time()
    function()
    return time.process_time() - start
