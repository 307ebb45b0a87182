"""What an optimizer hears of the losses between two steps."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from lopt_keras.signals import Signal
from lopt_keras.types import Tensor

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


class Observation:
    """The values of one loss since the last step: their sum and count, two variables.

    Under `tf.distribute`, each replica has a sum and a count of its own.

    Args:
        optimizer: the optimizer that owns the variables.
        name: name of the loss.
    """

    def __init__(self, optimizer: Any, name: str) -> None:
        self._total, self._count = (
            _variable(optimizer, f"{name}_{statistic}") for statistic in ("total", "count")
        )

    def add(self, value: Any) -> None:
        """Hears a value, a scalar; one that is not finite is not heard."""
        value = ops.cast(ops.stop_gradient(value), "float32")
        finite = ops.isfinite(value)
        _in_each_replica(self._add, ops.where(finite, value, 0.0), ops.cast(finite, "float32"))

    def _add(self, total: Tensor, count: Tensor) -> None:
        self._total.assign_add(total)
        self._count.assign_add(count)

    def sums(self) -> list[Tensor]:
        """The sum and the count, float32 scalars, of this replica."""
        # A copy, as only an operation has the replica's device.
        return [ops.copy(variable) for variable in (self._total, self._count)]

    def forget_where(self, condition: Tensor) -> None:
        """Forgets what was heard, if the condition holds."""
        for variable in (self._total, self._count):
            variable.assign(ops.where(condition, 0.0, ops.copy(variable)))


def mean(total: Tensor, count: Tensor) -> Signal:
    """The mean of what was heard, a `Signal` of shape `[1]`."""
    total, count = (ops.reshape(x, (1,)) for x in (total, count))
    heard = count > 0
    return Signal.where(heard, total / ops.where(heard, count, 1.0))


def _variable(optimizer: Any, name: str) -> Any:
    with keras.name_scope(optimizer.name, caller=optimizer):
        variable = keras.Variable(
            initializer="zeros",
            shape=(),
            dtype="float32",
            trainable=False,
            aggregation="sum",
            synchronization="on_read",
            name=name,
        )
    optimizer._track(variable)
    return variable


def _in_each_replica(function: Callable[..., Any], *args: Any) -> None:
    """Calls a function that adds to variables: from outside of replicas, in each."""
    if keras.backend.backend() == "tensorflow":
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync > 1 and tf.distribute.in_cross_replica_context():
            strategy.run(function, args=args)
            return
    function(*args)
