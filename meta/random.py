"""Stateless random numbers that are the same inside and outside of XLA.

For a seed with a negative entry, and for floats, TensorFlow's stateless samplers
give other values when XLA compiles them, and constant folding decides which of
the two a compiled program gets. Here seeds stay non-negative, and floats are made
from integers.

A seed is an int32 tensor of shape `[2]`, non-negative.
"""

import tensorflow as tf

_LARGEST = 2**31 - 1
_MANTISSA_BITS = 23


def seed(value):
    """The seed of a non-negative Python integer below 2^31."""
    return tf.constant([value, 0], tf.int32)


def fold_in(seed, data):
    """A new seed, from a seed and a non-negative integer."""
    return tf.bitwise.bitwise_and(tf.random.fold_in(seed, data), _LARGEST)


def integers(shape, seed, high):
    """Uniform int32 values in [0, high)."""
    return tf.random.stateless_uniform(shape, seed, 0, high, dtype=tf.int32)


def uniform(shape, seed, low=0.0, high=1.0):
    """Uniform float32 values in (low, high)."""
    unit = tf.cast(integers(shape, seed, 2**_MANTISSA_BITS), tf.float32)
    return low + (high - low) * (unit + 0.5) * 2.0**-_MANTISSA_BITS


def normal(shape, seed):
    """Standard normal float32 values, to 5.3 standard deviations."""
    return 2.0**0.5 * tf.math.erfinv(uniform(shape, seed, -1.0, 1.0))
