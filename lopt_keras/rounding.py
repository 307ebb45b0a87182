"""Stochastic rounding to bfloat16."""

import math

from keras import ops

from lopt_keras.types import Shape, Tensor


def to_bfloat16(x: Tensor, seed: Tensor) -> Tensor:
    """Rounds up or down at random, with the probabilities that keep the mean.

    An accumulator with a decay of 0.999 changes by less than half a step of
    bfloat16 in each update: rounded to nearest, it would stand still.

    Args:
        x: float32, finite.
        seed: int32 scalar. The same seed gives the same result.

    Returns:
        bfloat16, of the shape of x.
    """
    bits = ops.view(x, "int32")
    # A bfloat16 is the upper half of a float32: what carries over is the chance to round up.
    bits = ops.bitwise_and(bits + _random_16_bits(ops.shape(x), seed), -0x10000)
    return ops.cast(ops.view(bits, "float32"), "bfloat16")


def _random_16_bits(shape: Shape, seed: Tensor) -> Tensor:
    """Uniform int32 values in [0, 2^16), a hash of each entry's position and the seed.

    Keras's samplers take no seed that is a tensor.
    """
    position = ops.reshape(ops.arange(math.prod(shape), dtype="int32"), shape)
    h = _mix(position + _mix(seed))
    return ops.bitwise_and(_shifted(h, 8), 0xFFFF)


def _mix(h: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 (A. Appleby, public domain), which wraps around."""
    h = ops.bitwise_xor(h, _shifted(h, 16)) * -0x7A143595
    h = ops.bitwise_xor(h, _shifted(h, 13)) * -0x3D4D51CB
    return ops.bitwise_xor(h, _shifted(h, 16))


def _shifted(h: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return ops.bitwise_and(ops.bitwise_right_shift(h, bits), (1 << (32 - bits)) - 1)
