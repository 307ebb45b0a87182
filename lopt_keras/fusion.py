"""A network for every entry of a tensor, spelled out for a compiler that fuses.

Written as matrix products, a small network on large tensors is bound by memory: its
features and hidden units are written and read again, 64 bytes and more for each entry.
Spelled out in scalar weights, it is one long elementwise expression, of which XLA makes
one loop; inputs and hidden units stay in registers. (docs/performance.md has more.)
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from lopt_keras.types import Shape, Tensor

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

_fusing = contextvars.ContextVar("fusing", default=False)
# Each weight takes time to compile, which only large tensors earn back. XLA uses the
# vector units along the last axis.
_MOST_WEIGHTS, _FEWEST_ENTRIES_PER_WEIGHT, _SHORTEST_ROW = 2048, 64, 16
_LONGEST_FOLD, _FEWEST_ENTRIES_TO_FOLD = 128, 2**16


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Enter it while tracing a function that XLA compiles and that nobody differentiates.

    Elsewhere, a network that is spelled out is slow.
    """
    token = _fusing.set(True)
    try:
        yield
    finally:
        _fusing.reset(token)


def is_worthwhile(weights: Sequence[Tensor], shape: Shape) -> bool:
    """Whether to spell a network out.

    Args:
        weights: list of `[P, inputs, units]`, the layers' matrices.
        shape: of the tensor and P; an unknown size is None.
    """
    if not _fusing.get() or None in shape:
        return False
    count = sum(math.prod(w.shape[1:]) for w in weights)
    fewest = _FEWEST_ENTRIES_PER_WEIGHT * count
    if shape[-1] < _SHORTEST_ROW:
        if Fold(shape[1:]).rows == 1:
            return False
        fewest = max(fewest, _FEWEST_ENTRIES_TO_FOLD)
    return count <= _MOST_WEIGHTS and math.prod(shape) >= fewest


class Fold:
    """Several short rows of a matrix as one that is long enough for loops over it.

    Args:
        shape: of the tensor, without P.

    Attributes:
        rows: how many rows become one: 1 where none need to, or can.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape, self.rows = tuple(shape), 1
        if len(shape) == 2 and shape[1] < _SHORTEST_ROW:
            possible = range(-(-_SHORTEST_ROW // shape[1]), _LONGEST_FOLD // shape[1] + 1)
            # The fewest: the copies below are quicker then.
            self.rows = min((k for k in possible if shape[0] % k == 0), default=1)

    def __call__(self, x: Tensor) -> Tensor:
        """`[P, F, *shape_i]`, `shape_i` broadcasting to the shape, likewise to the folded one."""
        *leading, rows, columns = x.shape
        if (rows, columns) == self._shape:
            return ops.reshape(x, (*leading, rows // self.rows, self.rows * columns))
        if (rows, columns) == (1, 1):
            return x
        # Copied by products with ones, which XLA does not fuse with the loop over the long rows:
        # a loop that computes where in a short row it is does not use the vector units.
        if rows == 1:
            return ops.matmul(x, _matrix(np.tile(np.eye(columns), self.rows)))
        x = ops.reshape(x, (*leading, rows // self.rows, self.rows))
        return ops.matmul(x, _matrix(np.kron(np.eye(self.rows), np.ones((1, self._shape[1])))))


def _matrix(values: Tensor) -> Tensor:
    return ops.convert_to_tensor(values, "float32")


def mlp(
    inputs: Sequence[Tensor], offsets: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """An MLP with ReLU on every entry.

    Args:
        inputs: list of F `[P, *shape]`.
        offsets: list of H `[P, *shape]`, what is added to the units of the first layer.
        weights: list `[w0, w1, b1, w2, b2, ...]` of `[P, inputs, units]`, `[P, units]`.

    Returns:
        list of `[P, *shape]`, the outputs.
    """
    rank = len(inputs[0].shape) - 1
    hidden = _layer(inputs, weights[0], offsets, rank)
    for w, b in zip(weights[1::2], weights[2::2], strict=True):
        # Not ops.relu, which takes TensorFlow several times as long to hand to XLA.
        hidden = [ops.maximum(unit, 0.0) for unit in hidden]
        hidden = _layer(hidden, w, _scalars(b, rank), rank)
    return hidden


def _layer(x: Sequence[Tensor], w: Tensor, offsets: Sequence[Tensor], rank: int) -> list[Tensor]:
    """The units of a layer: list of `[P, *shape]`."""
    scalars = _scalars(w, rank)
    units = []
    for j, offset in enumerate(offsets):
        weights = scalars[j :: len(offsets)]
        terms = [weight * entry for entry, weight in zip(x, weights, strict=True)]
        # One node of the graph instead of many, each of which takes time to trace.
        units.append(offset + tf.add_n(terms))
    return units


def _scalars(w: Tensor, rank: int) -> list[Tensor]:
    """`[P, ...]` -> list of `[P, 1, ..., 1]`, against tensors of that rank."""
    flat = ops.reshape(w, (w.shape[0], -1, *(1,) * rank))
    return ops.unstack(flat, flat.shape[1], axis=1)
