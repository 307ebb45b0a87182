"""Convolution with filters of their own for every particle, fast on CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from lopt_keras.types import Tensor


def convolve(x: Tensor, filters: Tensor, stride: int) -> Tensor:
    """A convolution for each particle, with Keras's padding `"same"`.

    The window's k^2 shifted copies of x, and one matrix product for each particle.
    With the batch innermost, what is copied are long contiguous runs. In a loop
    under XLA, as in an unroll, plain convolutions for each particle take 10 times
    as long, and grouped ones 20 (`benchmarks/particle_convolutions.py`).

    Reverse differentiation, any number of times, keeps x and the filters for it,
    never the k^2 copies.

    Args:
        x: `[P, channels, height, width, B]`.
        filters: `[P, k, k, channels, outputs]`.
        stride: Python int, of both dimensions.

    Returns:
        `[P, outputs, ceil(height / stride), ceil(width / stride), B]`.
    """
    return _Convolution(x.shape, filters.shape, stride).of(x, filters)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Each pixel as a square of them: the nearest neighbour.

    Args:
        x: `[P, channels, height, width, B]`.
        factor: Python int, the side of the square.

    Returns:
        `[P, channels, factor * height, factor * width, B]`.
    """
    particles, channels, height, width, batch = x.shape
    x = tf.reshape(x, (particles, channels, height, 1, width, 1, batch))
    x = tf.broadcast_to(x, (particles, channels, height, factor, width, factor, batch))
    return tf.reshape(x, (particles, channels, factor * height, factor * width, batch))


class Windows:
    """The windows along one dimension, with padding `"same"`.

    Attributes:
        count: number of windows.
        padding: `(before, after)`.
    """

    def __init__(self, length: int, size: int, stride: int) -> None:
        self.count = -(-length // stride)
        total = max((self.count - 1) * stride + size - length, 0)
        self.padding = (total // 2, total - total // 2)
        self._stride = stride

    def taken_by(self, tap: int) -> slice:
        """The slice of the padded dimension that entry `tap` of the filter meets."""
        return slice(tap, tap + (self.count - 1) * self._stride + 1, self._stride)


class _Convolution:
    """A bilinear map y = of(x, filters), and its two adjoints.

    The gradients of each of the three are the other two: this is what lets reverse
    differentiation keep nothing but their arguments.
    """

    def __init__(self, x_shape: Sequence[int], filters_shape: Sequence[int], stride: int) -> None:
        self._x_shape, self._filters_shape = x_shape, filters_shape
        particles, _, height, width, batch = x_shape
        size, outputs = filters_shape[1], filters_shape[-1]
        self._size = size
        self._rows, self._columns = Windows(height, size, stride), Windows(width, size, stride)
        self._y_shape = (particles, outputs, self._rows.count, self._columns.count, batch)

    def of(self, x: Tensor, filters: Tensor) -> Tensor:
        """y, from x and filters."""

        @tf.custom_gradient
        def apply(x: Tensor, filters: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
            y = tf.matmul(self._as_matrix(filters), self._patches(x), transpose_a=True)
            y = tf.reshape(y, self._y_shape)
            return y, lambda dy: (self._to_x(dy, filters), self._to_filters(x, dy))

        return apply(x, filters)

    def _to_x(self, y: Tensor, filters: Tensor) -> Tensor:
        """The adjoint in x."""

        @tf.custom_gradient
        def apply(y: Tensor, filters: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
            patches = tf.matmul(self._as_matrix(filters), self._as_matrix(y, 2))
            x = self._add_patches(patches)
            return x, lambda dx: (self.of(dx, filters), self._to_filters(dx, y))

        return apply(y, filters)

    def _to_filters(self, x: Tensor, y: Tensor) -> Tensor:
        """The adjoint in the filters."""

        @tf.custom_gradient
        def apply(x: Tensor, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
            filters = tf.matmul(self._patches(x), self._as_matrix(y, 2), transpose_b=True)
            filters = tf.reshape(filters, self._filters_shape)
            return filters, lambda df: (self._to_x(y, df), self.of(x, df))

        return apply(x, y)

    def _patches(self, x: Tensor) -> Tensor:
        """The shifted copies: `[P, k * k * channels, height of y * width of y * B]`."""
        x = tf.pad(x, ((0, 0), (0, 0), self._rows.padding, self._columns.padding, (0, 0)))
        taps = range(self._size)
        shifted = [
            x[:, :, self._rows.taken_by(i), self._columns.taken_by(j)] for i in taps for j in taps
        ]
        return self._as_matrix(tf.concat(shifted, axis=1), 2)

    def _add_patches(self, patches: Tensor) -> Tensor:
        """The adjoint of `_patches`."""
        x = tf.zeros(self._x_shape)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            of_zeros = self._patches(x)
        return tape.gradient(of_zeros, x, patches)

    def _as_matrix(self, x: Tensor, rows_end: int = 4) -> Tensor:
        """`[P, rows, columns]`, the rows from the axes before `rows_end`."""
        rows, columns = x.shape[1:rows_end], x.shape[rows_end:]
        return tf.reshape(x, (x.shape[0], rows.num_elements(), columns.num_elements()))
