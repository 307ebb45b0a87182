"""A network for every entry of a tensor, spelled out for a compiler that fuses.

Written as matrix products, a small network on large tensors is bound by memory: its
features and hidden units are written and read again, 64 bytes and more for each entry.
Spelled out in scalar weights, it is one long elementwise expression, of which XLA makes
one loop; inputs and hidden units stay in registers. (Measured in docs/performance.md.)
"""

import contextlib
import contextvars
import math

from keras import ops

from lopt_keras import features

_fusing = contextvars.ContextVar("fusing", default=False)
# Compilation takes longer with each weight, small tensors take no time anyway, and XLA
# uses the vector units along the last axis.
_MOST_WEIGHTS, _FEWEST_ENTRIES, _SHORTEST_ROW = 512, 2**14, 16


@contextlib.contextmanager
def scope():
    """To be entered where a function is traced that XLA compiles: elsewhere, this is slow."""
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
    return math.prod(shape) >= _FEWEST_ENTRIES


def mlp(inputs, offsets, weights):
    """An MLP with ReLU on every entry.

    Args:
        inputs: list of F `[P, *shape]`.
        offsets: list of H `[P, *shape]`, what is added to the units of the first layer.
        weights: list `[w0, w1, b1, w2, b2, ...]` of `[P, inputs, units]`, `[P, units]`.

    Returns:
        list of `[P, *shape]`, the outputs.
    """
    count, units = len(inputs), len(offsets)

    # What XLA would derive for the backward pass is slow and takes minutes to compile.
    @ops.custom_gradient
    def apply(*args):
        x, offsets, weights = args[:count], args[count : count + units], args[count + units :]

        def backward(*upstream):
            return _gradients(x, offsets, weights, upstream)

        return _spelled_out(x, offsets, weights), backward

    return apply(*inputs, *offsets, *weights)


def _spelled_out(x, offsets, weights):
    rank = len(x[0].shape) - 1
    hidden = _layer(x, weights[0], offsets, rank)
    for w, b in zip(weights[1::2], weights[2::2], strict=True):
        hidden = _layer([ops.maximum(unit, 0.0) for unit in hidden], w, _scalars(b, rank), rank)
    return hidden


def _layer(x, w, offsets, rank):
    """The units of a layer: list of `[P, *shape]`."""
    scalars = _scalars(w, rank)
    units = []
    for j, unit in enumerate(offsets):
        for entry, weight in zip(x, scalars[j :: len(offsets)], strict=True):
            unit = unit + weight * entry
        units.append(unit)
    return units


def _scalars(w, rank):
    """`[P, ...]` -> list of `[P, 1, ..., 1]`, against tensors of that rank."""
    flat = ops.reshape(w, (w.shape[0], -1, *(1,) * rank))
    return ops.unstack(flat, flat.shape[1], axis=1)


def _gradients(inputs, offsets, weights, upstream):
    """Of all arguments of `mlp`, in their order, as matrix products."""
    x, delta = _stacked(inputs), _stacked(upstream)
    layers = list(zip(weights[1::2], weights[2::2], strict=True))
    before = [ops.einsum("pfh,pfn->phn", weights[0], x) + _stacked(offsets)]
    for w, b in layers[:-1]:
        before.append(affine(w, b, ops.relu(before[-1])))
    of_weights = []
    for (w, _), hidden in zip(reversed(layers), reversed(before), strict=True):
        of_w = ops.einsum("pfn,phn->pfh", ops.relu(hidden), delta)
        of_weights = [of_w, ops.sum(delta, axis=2), *of_weights]
        delta = ops.where(hidden > 0, ops.einsum("pfh,phn->pfn", w, delta), 0.0)
    of_weights = [ops.einsum("pfn,phn->pfh", x, delta), *of_weights]
    of_inputs = ops.einsum("pfh,phn->pfn", weights[0], delta)
    return [*_unstacked(of_inputs, inputs), *_unstacked(delta, offsets), *of_weights]


def affine(w, b, x):
    """`[P, F, H]`, `[P, H]`, `[P, F, n]` -> `[P, H, n]`."""
    # Not a transposition and a product: XLA cannot differentiate that twice in a loop.
    return ops.einsum("pfh,pfn->phn", w, x) + b[:, :, None]


def _stacked(arrays):
    """list of F `[P, *shape]` -> `[P, F, n]`"""
    return ops.stack([features.flat(x) for x in arrays], axis=1)


def _unstacked(stacked, like):
    """`[P, F, n]` -> list of F arrays of the shapes of `like`."""
    parts = ops.unstack(stacked, len(like), axis=1)
    return [ops.reshape(x, ops.shape(y)) for x, y in zip(parts, like, strict=True)]
