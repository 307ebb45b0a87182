"""A discrete-event model of a driver and its workers."""

import dataclasses
import heapq

import numpy as np


@dataclasses.dataclass(frozen=True)
class Engine:
    """What things cost besides the estimates themselves, in seconds.

    Attributes:
        put: driver, to give out a theta.
        submit: driver, to have a unit computed.
        look: driver, to ask once for what has arrived.
        look_each: likewise, more for each unit that is computed somewhere.
        collect: driver, to take an estimate.
        add: driver, to add an estimate to the others.
        apply: driver, for the rest of an outer step.
        latency: from the driver to a worker, and back, each.
        per_byte: of the driver's network.
        state_byte: driver, for each byte of a state that comes with an estimate.
    """

    put: float
    submit: float
    look: float
    look_each: float
    collect: float
    add: float
    apply: float
    latency: float
    per_byte: float
    state_byte: float = 0.0


@dataclasses.dataclass(frozen=True)
class Load:
    """What is to be done.

    Attributes:
        seconds: array, of an estimate on each worker.
        shards_each: shards of each worker.
        theta_bytes, estimate_bytes: what goes to each worker in a step, and comes from a shard.
        waits: whether each outer step waits for all its shards.
        spread: standard deviation of the logarithm of the time of an estimate.
        state_bytes: what comes back besides with some estimates of a shard.
        state_every: of so many estimates, one brings the state.
    """

    seconds: np.ndarray
    shards_each: int
    theta_bytes: int
    estimate_bytes: int
    waits: bool = True
    spread: float = 0.0
    state_bytes: int = 0
    state_every: int = 1


FREE = Engine(*[0.0] * (len(dataclasses.fields(Engine)) - 1))
"""Nothing costs anything: only the estimates take time."""


def steps_per_second(engine, load, num_steps=30, warm_up=5, seed=0):
    """Outer steps per second, and the fraction of the time in which the driver works: pair."""
    seconds, busy = step_seconds(engine, load, num_steps, warm_up, seed)
    return num_steps / sum(seconds), busy


def step_seconds(engine, load, num_steps=30, warm_up=5, seed=0):
    """The seconds of each outer step, and the fraction in which the driver works: pair."""
    simulation = _Simulation(engine, load, np.random.default_rng(seed))
    for _ in range(warm_up):
        simulation.step()
    busy, times = simulation.busy, [simulation.time]
    for _ in range(num_steps):
        simulation.step()
        times.append(simulation.time)
    return np.diff(times), (simulation.busy - busy) / (times[-1] - times[0])


def steps_per_second_of_a_tree(engine, load, num_groups):
    """Outer steps per second if the driver has leaders, and each leader a group of the workers.

    A leader gives theta to its group, adds its estimates and keeps its states, and costs what a
    driver costs but for the outer optimizer. All workers take the same time on average.
    """
    size = len(load.seconds) // num_groups
    group = dataclasses.replace(load, seconds=load.seconds[:size])
    seconds, _ = step_seconds(dataclasses.replace(engine, apply=0.0), group, num_steps=200)
    logarithms = np.log(seconds)
    leaders = dataclasses.replace(
        load,
        seconds=np.full(num_groups, np.exp(logarithms.mean())),
        shards_each=1,
        spread=logarithms.std(),
        state_bytes=0,
    )
    return steps_per_second(engine, leaders)[0]


class _Simulation:
    """The state of the driver, of its network in both directions, and of the workers."""

    def __init__(self, engine, load, rng):
        self._engine, self._load, self._rng = engine, load, rng
        self._workers = len(load.seconds)
        self._shards = self._workers * load.shards_each
        self._free = np.zeros(self._workers)
        self._sending = self._receiving = 0.0
        self._idle = list(range(self._shards))
        self._computed = []  # A heap of (time, shard).
        self._made = np.zeros(self._shards, int)
        self._left_over = 0
        self.time = self.busy = 0.0

    def step(self):
        """One outer step of the driver."""
        engine, missing = self._engine, self._shards
        self._work(engine.put)
        if not self._load.waits:
            missing -= self._left_over
        self._give_out()
        while missing > 0:
            missing -= self._take()
            if missing > 0 and not self._load.waits:
                self._give_out()
        self._left_over = -missing
        self._work(engine.add * self._shards + engine.apply)

    def _work(self, seconds):
        self.time += seconds
        self.busy += seconds

    def _give_out(self):
        """Every shard that is idle gets a unit; each worker fetches theta once."""
        informed = {}
        idle, self._idle = self._idle, []
        for shard in idle:
            self._work(self._engine.submit)
            worker = shard // self._load.shards_each
            if worker not in informed:
                sent = self._load.theta_bytes * self._engine.per_byte
                self._sending = max(self._sending, self.time) + sent
                informed[worker] = self._sending + self._engine.latency
            own = self._load.seconds[worker] * np.exp(self._load.spread * self._rng.normal())
            self._free[worker] = max(self._free[worker], informed[worker], self.time) + own
            heapq.heappush(self._computed, (self._free[worker], shard))

    def _take(self):
        """Waits for estimates, and takes all that have arrived by then: how many."""
        engine, outstanding = self._engine, len(self._computed)
        self.time = max(self.time, self._arrival())
        self._work(engine.look + engine.look_each * outstanding)
        taken = state_bytes = 0
        while self._computed and self._arrival() <= self.time:
            arrival = self._arrival()
            _, shard = heapq.heappop(self._computed)
            self._receiving = arrival - engine.latency
            state_bytes += self._state_bytes(shard)
            self._made[shard] += 1
            self._idle.append(shard)
            taken += 1
        self._work(engine.collect * taken + engine.state_byte * state_bytes)
        return taken

    def _arrival(self):
        """When the next estimate is with the driver."""
        computed, shard = self._computed[0]
        sent = self._load.estimate_bytes + self._state_bytes(shard)
        sent *= self._engine.per_byte
        return max(self._receiving, computed) + sent + self._engine.latency

    def _state_bytes(self, shard):
        """Of what comes with the estimate that a shard now makes."""
        returns = (self._made[shard] + 1) % self._load.state_every == 0
        return self._load.state_bytes if returns else 0
