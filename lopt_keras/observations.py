"""What an optimizer hears of the losses between two steps."""

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


class Observation:
    """The mean of the values of one loss since the last step, in two variables.

    Args:
        optimizer: the optimizer that owns the variables.
        name: name of the loss.
    """

    def __init__(self, optimizer, name):
        total, count = (
            optimizer.add_variable(
                shape=(),
                dtype="float32",
                name=f"{name}_{statistic}",
                aggregation="only_first_replica",
            )
            for statistic in ("total", "count")
        )
        self._total, self._count = total, count

    def add(self, value):
        """Hears a value, a scalar; one that is not finite is not heard.

        Inside of a replica of `tf.distribute`, each replica gives the value of its
        own part of the batch.
        """
        value = _mean_over_replicas(ops.cast(ops.stop_gradient(value), "float32"))
        finite = ops.isfinite(value)
        self._total.assign_add(ops.where(finite, value, 0.0))
        self._count.assign_add(ops.cast(finite, "float32"))

    def mean(self):
        """The mean, a float32 scalar: NaN where nothing was heard."""
        return ops.cast(self._total, "float32") / ops.cast(self._count, "float32")

    def reset_where(self, condition):
        """Forgets what was heard, if the condition holds."""
        for variable in (self._total, self._count):
            variable.assign(ops.where(condition, 0.0, variable))


def _mean_over_replicas(value):
    if keras.backend.backend() != "tensorflow":
        return value
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, value)
