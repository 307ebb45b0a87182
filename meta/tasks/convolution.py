"""Convolution with filters of their own for every particle, fast on CPU."""

import tensorflow as tf


def convolve(x, filters, stride):
    """A convolution for each particle, with Keras's padding `"same"`.

    The window's k^2 shifted copies of x, and one matrix product for each particle.
    With the batch innermost, what is copied are long contiguous runs. In a loop
    under XLA, as in an unroll, plain convolutions for each particle take 10 times
    as long, and grouped ones 20 (`benchmarks/particle_convolutions.py`).

    Args:
        x: `[P, channels, height, width, B]`.
        filters: `[P, k, k, channels, outputs]`.
        stride: Python int, of both dimensions.

    Returns:
        `[P, outputs, ceil(height / stride), ceil(width / stride), B]`.
    """
    particles, _, height, width, batch = x.shape
    size, _, channels, outputs = filters.shape[1:]
    rows, columns = (Windows(length, size, stride) for length in (height, width))
    x = tf.pad(x, ((0, 0), (0, 0), rows.padding, columns.padding, (0, 0)))
    shifted = [
        x[:, :, rows.taken_by(i), columns.taken_by(j)] for i in range(size) for j in range(size)
    ]
    shape = (particles, size**2 * channels, rows.count * columns.count * batch)
    x = tf.reshape(tf.concat(shifted, axis=1), shape)
    matrix = tf.reshape(filters, (particles, size**2 * channels, outputs))
    x = tf.matmul(matrix, x, transpose_a=True)
    return tf.reshape(x, (particles, outputs, rows.count, columns.count, batch))


class Windows:
    """The windows along one dimension, with padding `"same"`.

    Attributes:
        count: number of windows.
        padding: `(before, after)`.
    """

    def __init__(self, length, size, stride):
        self.count = -(-length // stride)
        total = max((self.count - 1) * stride + size - length, 0)
        self.padding = (total // 2, total - total // 2)
        self._stride = stride

    def taken_by(self, tap):
        """The slice of the padded dimension that entry `tap` of the filter meets."""
        return slice(tap, tap + (self.count - 1) * self._stride + 1, self._stride)
