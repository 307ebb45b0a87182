"""Whether a run fits into the machine's memory, checked before anything is allocated."""

import math
import os
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from export import backend
from lopt_keras.types import Tensor
from meta import random
from meta.tasks.base import Task

_LARGEST_SIZE = 10**7
"""Of any one dimension or count. A task may make arrays of such a size already to be traced."""
_COPIES = 2
"""Of the parameters, at least: themselves and their gradient."""


def check(task: Task, num_particles: int) -> None:
    """Raises if a task's parameters and one batch are more than the machine's memory.

    The task is traced for this, and not run. That it fits does not say that the run will.

    Args:
        task: `Task`.
        num_particles: of which each has parameters of its own, and each pair a batch.

    Raises:
        ValueError: naming the task's size and what the machine has; or if the task cannot be
            traced at all.
    """
    for name, value in task.get_config().items():
        sizes = [x for x in tf.nest.flatten(value) if isinstance(x, int)]
        if max(sizes, default=0) > _LARGEST_SIZE:
            raise ValueError(
                f"`{name}` of the task {task.name!r} must be at most {_LARGEST_SIZE}. "
                f"Received: {name}={value}"
            )
    try:
        params, batch = _traced(task)
    except (MemoryError, OverflowError, TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"The task {task.name!r} cannot be built: {backend.reason(error)}"
        ) from error
    parameters = sum(math.prod(x.shape) for x in params)
    held = _bytes(params) * _COPIES * num_particles + _bytes(batch) * (num_particles // 2)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if held > available:
        raise ValueError(
            f"{num_particles} particles of the task {task.name!r}, of {parameters} parameters and "
            f"batches of {_bytes(batch)} bytes, need at least {held / 2**30:.3g} GiB. This machine "
            f"has {available / 2**30:.3g} GiB."
        )


def _traced(task: Task) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and a batch of one problem, as TensorFlow's specifications."""

    @tf.function(autograph=False)
    def problem() -> Any:
        seed = random.seed(0)
        setting = task.draw(seed, 1)
        return task.init(seed, 1, setting), task.batch("train", seed, 1, setting)

    params, batch = problem.get_concrete_function().structured_outputs
    return tf.nest.flatten(params), tf.nest.flatten(batch)


def _bytes(arrays: Iterable[Any]) -> int:
    return sum(math.prod(x.shape) * x.dtype.size for x in arrays)
