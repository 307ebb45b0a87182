"""A worker in a process of its own, as Ray starts it: a `Worker`, and the states it has seen."""

import contextlib
import os
import pickle
import platform
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from lopt_keras.types import Arrays
from meta import provenance
from meta.training.config import MetaTrainingConfig
from meta.training.shards import Estimated, Unit
from meta.training.worker import Worker

Pair = tuple[int, int]
History = tuple[list[Any], list[tuple[Unit, Any]]]
"""A state, and the units since then, each with a reference to its theta."""


def versions() -> dict[str, str]:
    """What must be the same in all processes of a run: dict."""
    return {
        "code": provenance.source_digest(),
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
    }


class RayWorker:
    """What runs in a worker process. Its methods are what the crew asks for.

    A state has a version: how many estimates were made since the run, or its last start. The
    worker keeps the newest state that it has of each pair of a shard and a program.

    Args:
        environment: dict of environment variables, for XLA.
        threads: of TensorFlow.
    """

    def __init__(self, environment: Mapping[str, str], threads: int) -> None:
        os.environ.update(environment)
        with contextlib.suppress(ValueError):  # Ctrl-C is the driver's matter.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(RuntimeError):  # Where TensorFlow has started already.
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        self._states: dict[Pair, tuple[int, list[Any]]] = {}

    def begin(
        self, expected: Mapping[str, str], config: bytes, pairs: Sequence[Pair], theta: Arrays
    ) -> dict[str, Any]:
        """Traces the programs of pairs, before the worker's first estimate.

        Args:
            expected: the `versions` of the driver.
            config: the pickled `MetaTrainingConfig`.
            pairs: of a shard and a program.
            theta: dict of arrays, where the run starts.

        Returns:
            Dict of `pid`, `node`, and `states`, a dict from pair to its first state.

        Raises:
            ValueError: if this process has other versions.
        """
        own = versions()
        for name, version in expected.items():
            if own[name] != version:
                raise ValueError(
                    f"All workers must have the driver's {name}, {version}. Received: "
                    f"{own[name]} on {socket.gethostname()}"
                )
        self._worker = self.make_worker(pickle.loads(config))
        states = {pair: self._worker.init_state(theta, *pair) for pair in pairs}
        self._worker.trace(theta, sorted({program for _, program in pairs}), quiet=True)
        import ray

        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "states": {pair: _arrays(state) for pair, state in states.items()},
        }

    def make_worker(self, config: MetaTrainingConfig) -> Any:
        """The `Worker`."""
        programs = config.make_programs(config.make_rule())
        estimators = [estimator for estimator, _ in programs.values()]
        return Worker(estimators, config.make_curriculum(), config.seed)

    def estimate(
        self,
        unit: Unit,
        version: int,
        theta: Arrays,
        history: History | None,
        wants_state: bool,
    ) -> Estimated | None:
        """The `Estimated` of a unit; None if its state is not here and there is no history.

        Args:
            unit: `Unit`.
            version: of the state that the estimate starts from.
            theta: dict of arrays.
            history: from which to compute that state, if it is not here.
            wants_state: whether the state after it is returned too.
        """
        state = self._find(unit.pair, version, history)
        if state is None:
            return None
        made = self._worker.estimate(theta, state, unit)
        self._states[unit.pair] = version + 1, made.state
        return made._replace(state=_arrays(made.state) if wants_state else None)

    def state(self, pair: Pair, version: int, history: History | None) -> list[Any] | None:
        """A state, as arrays; None if it is not here and there is no history."""
        state = self._find(pair, version, history)
        return None if state is None else _arrays(state)

    def _find(self, pair: Pair, version: int, history: History | None) -> list[Any] | None:
        known, state = self._states.get(pair, (None, None))
        if known == version:
            return state
        if history is None:
            return None
        state, units = history
        for unit, theta in units:
            state = self._worker.estimate(_fetched(theta), state, unit).state
        self._states[pair] = version, state
        return state


def _fetched(reference: Any) -> Arrays:
    import ray

    return ray.get(reference)


def _arrays(state: Sequence[Any]) -> list[Any]:
    return [x.numpy() if hasattr(x, "numpy") else x for x in state]
