"""What an optimizer needs of TensorFlow that has no public name, in one place.

Besides `tf.__internal__.distribute.interim.maybe_merge_call`, in `keras_private`.
"""

import contextlib

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import op_callbacks


def stop_recording() -> contextlib.AbstractContextManager[None]:
    """A scope in which no gradient tape records.

    `tf.GradientTape.stop_recording` stops one tape, and an optimizer does not know the tapes.
    In TensorFlow since 2.13.
    """
    return record.stop_recording()


def watches_operations() -> bool:
    """Whether each operation is watched, as by `tf.debugging.enable_check_numerics`.

    What watches them has no kernel under XLA. In TensorFlow since 2.1.
    """
    return bool(op_callbacks.should_invoke_op_callbacks())


def subtract_scaled(variable: tf.Variable, scale: tf.Tensor, value: tf.Tensor) -> None:
    """`variable <- variable - scale * value`, as one operation.

    Args:
        variable: a variable of one device.
        scale: scalar of its dtype.
        value: of its shape and dtype.
    """
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=scale, delta=value)
