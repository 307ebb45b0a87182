"""Sums and means that XLA makes fast on CPUs.

XLA adds up one number after the other there. A matrix product with ones, and sums of whole
slices, use the vector units.
"""

import math
from collections.abc import Sequence

from keras import ops

from lopt_keras.types import Tensor

_LONG, _MOST_PARTS, _ROW = 256, 8, (8, 2**16)


def mean(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    """The mean over an axis, or over several neighbouring axes, kept with size 1."""
    if None in x.shape:
        return ops.mean(x, axis=axis, keepdims=True)
    return total(x, axis) / math.prod(x.shape[i] for i in _tuple(axis))


def means(arrays: Sequence[Tensor], axis: int | Sequence[int]) -> Tensor:
    """The mean of each array over its last axes, side by side: `[P, F_i, ...]` -> `[P, F, ...]`.

    As `mean` of each and a concatenation, in half as many kernels.

    Args:
        arrays: list of arrays that differ in the size of their axis 1 only.
        axis: the last axes, none of them before axis 2, kept with size 1.
    """
    first = _tuple(axis)[0]
    sizes = arrays[0].shape[first:]
    if None in arrays[0].shape or math.prod(sizes) < _LONG:
        return ops.concatenate([mean(x, axis) for x in arrays], axis=1)
    count, length = math.prod(sizes), _row_length(sizes)
    ones = _ones(length)
    rows = [ops.reshape(_row_sums(x, ones), (*x.shape[:first], -1)) for x in arrays]
    rows = ops.concatenate(rows, axis=1)
    sums = _row_sums(rows, _ones(count // length)) / count
    return ops.reshape(sums, (*rows.shape[:-1], *(1,) * len(sizes)))


def total(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    """The sum over an axis, or over several neighbouring axes, kept with size 1.

    XLA adds up one number after the other on CPUs, where it does not fuse either. A
    matrix product with ones, and sums of whole slices, use the vector units.
    """
    axis = _tuple(axis)
    if not axis:
        return x
    if None in x.shape:
        return ops.sum(x, axis=axis, keepdims=True)
    sizes = x.shape[axis[0] : axis[-1] + 1]
    if math.prod(sizes) < _LONG:
        return ops.sum(x, axis=axis, keepdims=True)
    if math.prod(x.shape[axis[-1] + 1 :]) > 1:
        parts = max(k for k in range(1, _MOST_PARTS + 1) if sizes[0] % k == 0)
        return ops.sum(sum(ops.split(x, parts, axis=axis[0])), axis=axis, keepdims=True)
    length = _row_length(sizes)
    sums = _row_sums(_row_sums(x, _ones(length)), _ones(math.prod(sizes) // length))
    return ops.reshape(sums, [1 if i in axis else size for i, size in enumerate(x.shape)])


def row_totals(x: Tensor) -> Tensor:
    """The sums over the last axis, `[P, ..., n]` -> `[P, ...]`, also of short rows as a product."""
    return ops.reshape(_row_sums(x, _ones(x.shape[-1])), (-1, *x.shape[1:-1]))


def _row_sums(x: Tensor, ones: Tensor) -> Tensor:
    """The sums of as many consecutive entries as there are `ones`, all in one column."""
    return ops.matmul(ops.reshape(x, (-1, ones.shape[0])), ones)


def _ones(length: int) -> Tensor:
    return ops.ones((length, 1), "float32")


def _row_length(sizes: Sequence[int]) -> int:
    """How many entries to add up at a time: whole rows, if they are of a good length."""
    length = 1
    for size in reversed(sizes):
        length *= size
        if length >= _ROW[0]:
            break
    if length <= _ROW[1]:
        return length
    return max(k for k in range(1, 1025) if length % k == 0)


def _tuple(axis: int | Sequence[int]) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(axis)
