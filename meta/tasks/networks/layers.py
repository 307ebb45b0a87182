"""Layers of networks that have a particle axis: every particle has weights of its own.

Shapes: P particles, B examples of a batch.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random

ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "elu", "silu")
"""Names of Keras activations that tasks draw from."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The Keras activation of that name."""
    return keras.activations.get(name)


def per_particle(values: Tensor, rank: int) -> Tensor:
    """`[P]` as `[P, 1, ...]`, to scale tensors of `rank` dimensions."""
    return tf.reshape(values, (-1, *(1,) * (rank - 1)))


def transpose(x: Tensor, permutation: Sequence[int]) -> Tensor:
    """`tf.transpose`, whose second gradient compiles in a loop.

    That of TensorFlow inverts the permutation in the graph, where XLA wants a constant.
    """

    @tf.custom_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        inverse = [int(axis) for axis in np.argsort(permutation)]
        return tf.transpose(x, permutation), lambda dy: transpose(dy, inverse)

    return apply(x)


def init_weights(
    seed: Tensor, num: int, shapes: Sequence[Sequence[int]], scale: Tensor | None = None
) -> list[Tensor]:
    """Weights and a bias for each of several layers, as Keras's `Dense` and `Conv2D` start.

    Args:
        seed: `[2]`.
        num: number of problems.
        shapes: of each layer's weights, input and output units last; what comes before
            is a filter's window. A shape `(units,)` is a layer normalisation.
        scale: `[num]`, multiplies the weights; None for 1.

    Returns:
        List of `[num, *shape]` weights, Glorot-uniform, and `[num, outputs]` biases,
        zero, in turn. The weights of a normalisation are one, whatever the scale.
    """
    matrices = [i for i, shape in enumerate(shapes) if len(shape) > 1]
    seeds = random.split(seed, len(shapes))
    unit = random.uniforms([(num, *shapes[i]) for i in matrices], [seeds[i] for i in matrices])
    drawn = dict(zip(matrices, unit, strict=True))
    params = []
    for layer, shape in enumerate(shapes):
        weights = tf.ones((num, *shape))
        if layer in drawn:
            limit = _glorot_limit(shape)
            weights = 2.0 * limit * drawn[layer] - limit
            if scale is not None:
                weights = weights * per_particle(scale, weights.shape.rank)
        params += [weights, tf.zeros((num, shape[-1]))]
    return params


def _glorot_limit(shape: Sequence[int]) -> float:
    """Of the uniform distribution of Keras's `GlorotUniform`."""
    *window, inputs, outputs = shape
    return float(np.sqrt(6.0 / (np.prod(window) * (inputs + outputs))))


def dense(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[P, ..., inputs]` -> `[P, ..., outputs]`."""
    flat = tf.reshape(x, (x.shape[0], -1, x.shape[-1]))
    y = tf.matmul(flat, weights)
    if bias is not None:
        y += bias[:, None]
    return tf.reshape(y, (*x.shape[:-1], weights.shape[-1]))


def embed(indices: Tensor, table: Tensor) -> Tensor:
    """The row of a table for each index: `[P, ...]` int32, `[P, rows, units]` -> `[P, ..., units]`.

    As a product with one-hot vectors, whose gradient is a product too.
    """
    return dense(tf.one_hot(indices, table.shape[1]), table)


def mlp(x: Tensor, params: Sequence[Tensor], nonlinearity: Callable[[Tensor], Tensor]) -> Tensor:
    """Dense layers with a nonlinearity between them; params as `init_weights` gives them."""
    for layer, (weights, bias) in enumerate(zip(params[::2], params[1::2], strict=True)):
        x = dense(nonlinearity(x) if layer else x, weights, bias)
    return x


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation over the last axis of `[P, ..., units]`; scale and bias `[P, units]`."""
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axis=-1, keepdims=True)
    shape = (x.shape[0], *(1,) * (x.shape.rank - 2), x.shape[-1])
    x = (x - mean) * tf.math.rsqrt(variance + 1e-5)
    return x * tf.reshape(scale, shape) + tf.reshape(bias, shape)


def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Mean over all but the particle axis: `[P]`, labels `[P, ...]`, logits `[P, ..., classes]`."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.reduce_mean(losses, axis=range(1, losses.shape.rank))


def _log_cosh(x: Tensor) -> Tensor:
    return tf.abs(x) + tf.nn.softplus(-2.0 * tf.abs(x)) - np.log(2.0).astype("float32")


def _smooth_absolute(x: Tensor) -> Tensor:
    return tf.sqrt(tf.square(x) + 1.0) - 1.0


REGRESSION_LOSSES = {
    "squared": tf.square,
    "log_cosh": _log_cosh,
    "smooth_absolute": _smooth_absolute,
}
"""Losses of an error: `e^2`, `log cosh e` and `sqrt(1 + e^2) - 1`, which grows like |e|."""


def regression_loss(name: str, targets: Tensor, predictions: Tensor) -> Tensor:
    """Mean of one of `REGRESSION_LOSSES` over all but the particle axis.

    Args:
        name: of the loss.
        targets, predictions: `[P, ...]`.

    Returns:
        `[P]`.
    """
    losses = REGRESSION_LOSSES[name](targets - predictions)
    return tf.reduce_mean(losses, axis=range(1, losses.shape.rank))
