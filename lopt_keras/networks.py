"""The small networks of the rules: one for every parameter, one for every tensor.

Shapes are written as in `features`: `P` particles, `F` features, a tensor's `*shape`.
Weights are entries of theta: `w0 [P, inputs, units]`, `b0 [P, units]`, `w1`, ...
"""

import itertools
import math

import numpy as np
from keras import ops

from lopt_keras import features


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


def mlp(theta, x, hidden_layers, prefix=""):
    """An MLP with ReLU on one vector a particle: `[P, F]` -> `[P, outputs]`."""
    for i in range(hidden_layers + 1):
        x = ops.relu(x) if i else x
        x = ops.squeeze(ops.matmul(x[:, None], theta[f"{prefix}w{i}"]), 1)
        x = x + theta[f"{prefix}b{i}"]
    return x


def mlp_per_parameter(theta, inputs, context, hidden_layers, epsilon=1e-5, axes=None):
    """An MLP with ReLU on every entry of a tensor.

    Exact to rounding, but cheaper than concatenating normalised features: inputs
    of one shape share one matrix product, those that are constant along an axis
    are broadcast after theirs, the normalisation scales the weights instead of
    the features, and what is the same for all entries is a bias.

    Args:
        theta: dict with `w0`, `b0`, ...; the rows of `w0` belong to `inputs`, in
            their order, and then to `context`.
        inputs: list of `[P, F_i, *shape_i]`, where each `shape_i` broadcasts to
            the tensor's shape. Each feature is second-moment normalised.
        context: `[P, F]`, the same for all entries, not normalised; or None. With
            fewer inputs than `w0` has rows, the rows in between are not used.
        hidden_layers: number of hidden layers.
        epsilon: added to the second moments.
        axes: number of trailing axes of the tensor over which a feature is
            normalised; None for all.

    Returns:
        `[P, outputs, n]`, n the number of entries.
    """
    hidden = _first_layer(theta["w0"], inputs, epsilon, axes)
    bias = theta["b0"]
    if context is not None:
        rows = theta["w0"][:, theta["w0"].shape[1] - context.shape[1] :]
        bias = bias + ops.squeeze(ops.matmul(context[:, None], rows), 1)
    hidden = hidden + bias[:, :, None]
    for i in range(1, hidden_layers + 1):
        # Not a transposition and a product: XLA cannot differentiate that twice in a loop.
        hidden = ops.einsum("pfh,pfn->phn", theta[f"w{i}"], ops.relu(hidden))
        hidden = hidden + theta[f"b{i}"][:, :, None]
    return hidden


def _first_layer(weights, inputs, epsilon, axes):
    """The sum of the matrix products, `[P, hidden_size, n]`."""
    groups, row = {}, 0
    for x in inputs:
        groups.setdefault(tuple(x.shape[2:]), []).append((x, row))
        row += x.shape[1]
    total = None
    for members in groups.values():
        x = _concatenate([x for x, _ in members])
        w = _concatenate([weights[:, i : i + x.shape[1]] for x, i in members])
        product = _normalised_product(w, x, epsilon, axes)
        total = product if total is None else total + product
    particles, _, hidden_size = weights.shape
    return ops.reshape(total, (particles, hidden_size, -1))


def _concatenate(arrays):
    return arrays[0] if len(arrays) == 1 else ops.concatenate(arrays, axis=1)


def _normalised_product(w, x, epsilon, axes):
    """`w [P, F, H]` applied to `x [P, F, *shape]`, each feature second-moment normalised."""
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
