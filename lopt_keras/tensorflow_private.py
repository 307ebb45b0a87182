"""What TensorFlow has no public name for, in one place."""

from tensorflow.python.eager import record
from tensorflow.python.framework import op_callbacks


def stop_recording():
    """A scope in which no gradient tape records, whosever it is."""
    return record.stop_recording()


def watches_operations():
    """Whether each operation is watched, as by `tf.debugging.enable_check_numerics`.

    What watches them has no kernel under XLA.
    """
    return bool(op_callbacks.should_invoke_op_callbacks())
