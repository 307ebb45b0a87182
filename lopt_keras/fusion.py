"""A network for every entry of a tensor, spelled out for a compiler that fuses.

Written as matrix products, a small network on large tensors is bound by memory: its
features and hidden units are written and read again, 64 bytes and more for each entry.
Spelled out in scalar weights, it is one long elementwise expression, of which XLA makes
one loop; inputs and hidden units stay in registers. (Measured in docs/performance.md.)
"""

import contextlib
import contextvars
import math

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

_fusing = contextvars.ContextVar("fusing", default=False)
# Each weight takes time to compile, which only large tensors earn back. XLA uses the
# vector units along the last axis.
_MOST_WEIGHTS, _FEWEST_ENTRIES_PER_WEIGHT, _SHORTEST_ROW = 2048, 64, 16


@contextlib.contextmanager
def scope():
    """To be entered where a function is traced that XLA compiles and nobody differentiates.

    Elsewhere, what is spelled out is slow.
    """
    token = _fusing.set(True)
    try:
        yield
    finally:
        _fusing.reset(token)


def is_worthwhile(weights, shape):
    """Whether to spell a network out.

    Args:
        weights: list of `[P, inputs, units]`, the layers' matrices.
        shape: of the tensor and P; an unknown size is None.
    """
    if not _fusing.get() or None in shape:
        return False
    count = sum(math.prod(w.shape[1:]) for w in weights)
    if count > _MOST_WEIGHTS or shape[-1] < _SHORTEST_ROW:
        return False
    return math.prod(shape) >= _FEWEST_ENTRIES_PER_WEIGHT * count


def mlp(inputs, offsets, weights):
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


def _layer(x, w, offsets, rank):
    """The units of a layer: list of `[P, *shape]`."""
    scalars = _scalars(w, rank)
    units = []
    for j, offset in enumerate(offsets):
        weights = scalars[j :: len(offsets)]
        terms = [weight * entry for entry, weight in zip(x, weights, strict=True)]
        # One node of the graph instead of many, each of which takes time to trace.
        units.append(offset + tf.add_n(terms))
    return units


def _scalars(w, rank):
    """`[P, ...]` -> list of `[P, 1, ..., 1]`, against tensors of that rank."""
    flat = ops.reshape(w, (w.shape[0], -1, *(1,) * rank))
    return ops.unstack(flat, flat.shape[1], axis=1)
