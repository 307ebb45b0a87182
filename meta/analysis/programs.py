"""Functions as TensorFlow programs that are traced once."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def traced(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A function as a program for arguments of these shapes.

    A concrete function: the `tf.function` is made for one use, and TensorFlow would warn of that.
    """
    return tf.function(function, autograph=False).get_concrete_function(*arguments)
