"""Stateless random numbers, the same inside and outside of XLA, and fast under it.

TensorFlow's stateless samplers take hundreds of nanoseconds a number where XLA compiles
them for a CPU, and give other floats there than elsewhere. Here one hash, in plain
operations that XLA vectorizes, makes all of them.

A seed is an int32 tensor of shape `[2]`.

Source: Threefry-2x32 with 20 rounds, Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011, section 3.3.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from lopt_keras.types import Shape, Tensor

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_GROUPS_OF_ROUNDS = 5
_MANTISSA_BITS = 23
# What the second word of a counter says: numbers and seeds never share a hash.
_NUMBERS, _SEEDS = 0, 1
_WORD = tf.TensorSpec(None, tf.uint32)


def seed(value: int) -> Tensor:
    """The seed of a non-negative Python integer below 2^31."""
    return tf.constant([value, 0], tf.int32)


def fold_in(seed: Tensor, data: Any) -> Tensor:
    """A new seed, from a seed and an integer or scalar integer tensor below 2^31."""
    words = threefry(_words(seed), _unsigned(tf.cast(data, tf.int32)), _word(_SEEDS))
    return tf.bitcast(tf.stack(words), tf.int32)


def split(seed: Tensor, num: int) -> list[Tensor]:
    """`num` new seeds, `fold_in(seed, 0)` and so on, from one hash."""
    words = threefry(_words(seed), _unsigned(tf.range(num)), _word(_SEEDS))
    return tf.unstack(tf.bitcast(tf.stack(words, axis=1), tf.int32))


def integers(shape: Shape, seed: Tensor, high: Any) -> Tensor:
    """Uniform int32 values in [0, high), to within `high / 2^32`."""
    product = tf.cast(_bits(shape, seed), tf.uint64) * tf.constant(high, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(product, tf.constant(32, tf.uint64)), tf.int32)


def uniform(shape: Shape, seed: Tensor, low: Any = 0.0, high: Any = 1.0) -> Tensor:
    """Uniform float32 values in (low, high)."""
    return _between(_bits(shape, seed), low, high)


def uniforms(
    shapes: Sequence[Shape], seeds: Sequence[Tensor], low: float = 0.0, high: float = 1.0
) -> list[Tensor]:
    """`uniform` for each shape and its seed, from one hash.

    A hash is some hundred operations to compile, wherever it stands.
    """
    return _together(lambda bits: _between(bits, low, high), shapes, seeds)


def normal(shape: Shape, seed: Tensor) -> Tensor:
    """Standard normal float32 values, to 5.3 standard deviations."""
    return _normal(_bits(shape, seed))


def normals(shapes: Sequence[Shape], seeds: Sequence[Tensor]) -> list[Tensor]:
    """`normal` for each shape and its seed, from one hash."""
    return _together(_normal, shapes, seeds)


# A program hashes in dozens of places. Traced once, for all shapes, it is a node in each.
@functools.partial(tf.function, autograph=False, input_signature=[(_WORD, _WORD), _WORD, _WORD])
def threefry(key: Sequence[Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two words that a counter of two words is hashed to, for a key of two.

    Args:
        key: pair of uint32 scalars.
        first, second: uint32 tensors that broadcast.
    """
    keys = (*key, tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(*key), _word(_PARITY)))
    first, second = first + keys[0], second + keys[1]
    for group in range(_GROUPS_OF_ROUNDS):
        for bits in _ROTATIONS[group % 2]:
            first = first + second
            second = tf.bitwise.bitwise_xor(_rotated(second, bits), first)
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + _word(group + 1)
    return first, second


def _bits(shape: Shape, seed: Tensor) -> Tensor:
    """Uniform uint32 values: the first word of the hash of each position.

    To join both words would cost four times what the second one saves.
    """
    position = _unsigned(tf.range(math.prod(shape)))
    return tf.reshape(threefry(_words(seed), position, _word(_NUMBERS))[0], shape)


def _together(
    sample: Callable[[Tensor], Tensor], shapes: Sequence[Shape], seeds: Sequence[Tensor]
) -> list[Tensor]:
    """Samples of bits as `_bits` gives them for each shape and its seed."""
    if not shapes:
        return []
    flat = sample(_joined_bits(shapes, seeds))
    parts = tf.split(flat, [math.prod(shape) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def _joined_bits(shapes: Sequence[Shape], seeds: Sequence[Tensor]) -> Tensor:
    """What `_bits` gives for each shape and its seed, flat, one after the other."""
    sizes = [math.prod(shape) for shape in shapes]
    # Keys as long as what they make, so that a position is hashed as on its own.
    keys = [
        tf.concat([tf.fill([size], word) for size, word in zip(sizes, words, strict=True)], axis=0)
        for words in zip(*[_words(seed) for seed in seeds], strict=True)
    ]
    position = _unsigned(tf.concat([tf.range(size) for size in sizes], axis=0))
    return threefry(tuple(keys), position, _word(_NUMBERS))[0]


def _between(bits: Tensor, low: Any, high: Any) -> Tensor:
    bits = tf.bitwise.right_shift(bits, _word(32 - _MANTISSA_BITS))
    unit = tf.cast(tf.cast(bits, tf.int32), tf.float32)
    return low + (high - low) * (unit + 0.5) * 2.0**-_MANTISSA_BITS


def _normal(bits: Tensor) -> Tensor:
    return 2.0**0.5 * tf.math.erfinv(_between(bits, -1.0, 1.0))


def _rotated(x: Tensor, bits: int) -> Tensor:
    left = tf.bitwise.left_shift(x, _word(bits))
    return tf.bitwise.bitwise_or(left, tf.bitwise.right_shift(x, _word(32 - bits)))


def _words(seed: Tensor) -> tuple[Tensor, ...]:
    return tuple(tf.unstack(_unsigned(seed)))


def _unsigned(x: Tensor) -> Tensor:
    return tf.bitcast(x, tf.uint32)


def _word(value: int) -> Tensor:
    return tf.constant(value, tf.uint32)
