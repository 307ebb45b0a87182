"""The small networks of the rules: one for every parameter, one for every tensor.

Shapes are written as in `features`: `P` particles, `F` features, a tensor's `*shape`.
Weights are entries of theta: `w0 [P, inputs, units]`, `b0 [P, units]`, `w1`, ...
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from lopt_keras import features, fusion, reductions


def mlp_shapes(sizes, prefix=""):
    """Theta shapes of an MLP: dict from name to tuple.

    Args:
        sizes: number of inputs, units of each hidden layer, number of outputs.
        prefix: of the names.
    """
    shapes = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        shapes[f"{prefix}w{i}"] = (fan_in, fan_out)
        shapes[f"{prefix}b{i}"] = (fan_out,)
    return shapes


def random_weights(shapes, seed):
    """Matrices normal with standard deviation `1 / sqrt(fan_in)`, all else zero."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        scale = shape[0] ** -0.5 if len(shape) == 2 else 0.0
        weights[name] = (scale * rng.standard_normal(shape)).astype("float32")
    return weights


def mlp(theta, x, hidden_layers, prefix="", offset=None):
    """An MLP with ReLU on one vector a particle: `[P, F]` -> `[P, outputs]`.

    Args:
        theta: dict of `[P, ...]`.
        x: `[P, F]`.
        hidden_layers: number of hidden layers.
        prefix: of the names in theta.
        offset: `[P, H]` from `first_layer` of the inputs that come before x, if there are any.
    """
    offset = theta[f"{prefix}b0"] if offset is None else offset
    x = offset + product(x, theta[f"{prefix}w0"][:, -x.shape[1] :])
    for i in range(1, hidden_layers + 1):
        # Not ops.relu, which takes TensorFlow several times as long to hand to XLA.
        x = product(ops.maximum(x, 0.0), theta[f"{prefix}w{i}"]) + theta[f"{prefix}b{i}"]
    return x


def first_layer(theta, x, prefix=""):
    """What the first of the inputs `[P, F]` of an MLP make of its first layer: `[P, H]`."""
    return product(x, theta[f"{prefix}w0"][:, : x.shape[1]]) + theta[f"{prefix}b0"]


def product(x, w):
    """`[P, F]` times `[P, F, H]`, particle by particle."""
    return ops.squeeze(ops.matmul(x[:, None], w), 1)


def mlp_per_parameter(theta, inputs, arrays, context, hidden_layers, epsilon=1e-5, axes=None):
    """An MLP with ReLU on every entry of a tensor.

    Exact to rounding, but cheaper than concatenating normalised features: what is
    constant along an axis is broadcast after its matrix product, and what is the same
    for all entries is a bias. Where fusion is worthwhile, features are not written to
    memory: each is computed once for its second moment and once in the network.

    Args:
        theta: dict with `w0`, `b0`, ...; the rows of `w0` belong to the inputs, in
            their order, and then to `context`.
        inputs: function from `arrays` to a list of `[P, F_i, *shape_i]`, F_i being F or
            1, where each `shape_i` broadcasts to the tensor's shape, and the first is
            that shape. Each feature is second-moment normalised. Works entry by entry,
            also on arrays without the axis of the features, of which it then gives one.
        arrays: list of `[P, F or 1, *shape_i]`.
        context: `[P, F]`, the same for all entries, not normalised; or None. With
            fewer inputs than `w0` has rows, the rows in between are not used.
        hidden_layers: number of hidden layers.
        epsilon: added to the second moments.
        axes: number of trailing axes of the tensor over which a feature is
            normalised; None for all.

    Returns:
        `[P, outputs, n]`, n the number of entries.
    """
    bias = theta["b0"]
    if context is not None:
        rows = theta["w0"][:, theta["w0"].shape[1] - context.shape[1] :]
        bias = bias + product(context, rows)
    groups = _groups(theta["w0"], inputs(*arrays))
    shape = next(iter(groups))
    full = groups.pop(shape)
    offsets = [features.broadcast_over(bias, len(shape))]
    offsets += [_normalised_product(members, epsilon, axes) for members in groups.values()]
    layers = [theta[f"{kind}{i}"] for i in range(1, hidden_layers + 1) for kind in "wb"]
    weights = [_concatenate([member.w for member in full]), *layers]
    if fusion.is_worthwhile(weights, (bias.shape[0], *shape)):
        fold = fusion.Fold(shape)
        if fold.rows > 1:
            arrays, offsets = [fold(x) for x in arrays], [fold(x) for x in offsets]
            values = inputs(*arrays)
            full = [member._replace(x=values[member.index]) for member in full]
        x = _normalised_planes(full, inputs, arrays, epsilon, axes)
        offset = ops.broadcast_to(sum(offsets), (*bias.shape, *x[0].shape[1:]))
        outputs = fusion.mlp(x, ops.unstack(offset, bias.shape[1], axis=1), weights)
        return ops.stack([features.flat(x) for x in outputs], axis=1)
    hidden = _normalised_product(full, epsilon, axes) + sum(offsets)
    hidden = ops.reshape(hidden, (*bias.shape, -1))
    for w, b in zip(layers[::2], layers[1::2], strict=True):
        # Not a transposition and a product: XLA cannot differentiate that twice in a loop.
        hidden = ops.einsum("pfh,pfn->phn", w, ops.relu(hidden)) + b[:, :, None]
    return hidden


def scaled(direction, exponent):
    """`direction * exp(exponent)`."""
    # XLA computes a product, and the whole network with it, anew wherever it is read, but
    # no quotient. The small number keeps it from writing this one as a product.
    return direction / (ops.exp(-exponent) + 1e-30)


class _Input(NamedTuple):
    """Some features.

    Attributes:
        index: among the inputs.
        w: their rows of `w0`, `[P, F, H]`.
        x: `[P, F, *shape]`.
    """

    index: int
    w: Any
    x: Any


def _groups(w0, values):
    """Inputs by their shape: dict to list of `_Input`."""
    groups, row = {}, 0
    for index, x in enumerate(values):
        w = w0[:, row : row + x.shape[1]]
        groups.setdefault(tuple(x.shape[2:]), []).append(_Input(index, w, x))
        row += x.shape[1]
    return groups


def _concatenate(arrays):
    return arrays[0] if len(arrays) == 1 else ops.concatenate(arrays, axis=1)


def _normalised_planes(members, inputs, arrays, epsilon, axes):
    """The features one by one: list of `[P, *shape]`."""
    count = max(x.shape[1] for x in arrays)
    columns = [ops.unstack(x, x.shape[1], axis=1) for x in arrays]
    columns = [column * count if len(column) == 1 else column for column in columns]
    # Computed anew: XLA would write to memory what both this and the second moments read.
    planes = [inputs(*column) for column in zip(*columns, strict=True)]
    x = [planes[k][index] for index, _, group in members for k in range(group.shape[1])]
    rank = len(members[0].x.shape) - 2
    trailing = tuple(range(2 + max(0, rank - (axes or rank)), 2 + rank))
    moments = reductions.means([ops.square(group) for *_, group in members], trailing)
    scales = ops.unstack(ops.rsqrt(epsilon + moments), len(x), axis=1)
    return [plane * scale for plane, scale in zip(x, scales, strict=True)]


def _normalised_product(members, epsilon, axes):
    """The matrix product of inputs of one shape, each second-moment normalised.

    Returns:
        `[P, H, *shape]`.
    """
    w = _concatenate([member.w for member in members])
    x = _concatenate([member.x for member in members])
    particles, count, hidden_size = w.shape
    shape = ops.shape(x)[2:]
    if axes is None or len(shape) <= axes:
        flat = ops.reshape(x, (particles, count, -1))
        w = w * features.second_moment_scale(flat, epsilon, axis=2)
        product = ops.einsum("pfh,pfn->phn", w, flat)
    else:
        # One product for each block of the trailing axes, as each has scales of its own.
        blocks = math.prod(shape[: len(shape) - axes])
        flat = ops.reshape(x, (particles, count, blocks, -1))
        scale = features.second_moment_scale(flat, epsilon, axis=3)
        w = ops.transpose(w[:, :, None] * scale, (0, 2, 3, 1))
        product = ops.swapaxes(ops.matmul(w, ops.swapaxes(flat, 1, 2)), 1, 2)
    return ops.reshape(product, (particles, hidden_size, *shape))
