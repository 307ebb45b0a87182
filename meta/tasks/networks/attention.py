"""Self-attention with weights of its own for every particle."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta.tasks.networks import layers

_NEVER = -1e9
"""The logit of a position that may not be looked at."""


def self_attention(
    x: Tensor, weights: Sequence[Tensor], num_heads: int, causal: bool = False
) -> Tensor:
    """Multi-head self-attention: each position looks at all, or at those up to itself.

    The softmax of `q k' / sqrt(width / num_heads)` weighs the values v, for each head;
    a dense layer joins the heads. Entries of q come first in `qkv weights`, then those
    of k, then those of v; a head's entries lie together.

    Args:
        x: `[P, B, T, width]`, P particles, B examples, T positions.
        weights: `(qkv weights [P, width, 3 * width], qkv bias [P, 3 * width],
            out weights [P, width, width], out bias [P, width])`.
        num_heads: Python int that divides `width`.
        causal: whether a position sees only itself and those before it.

    Returns:
        `[P, B, T, width]`.

    Raises:
        ValueError: if `num_heads` does not divide the width.

    Source: Vaswani et al., arXiv 1706.03762, section 3.2.
    """
    particles, examples, length, width = x.shape
    if width % num_heads:
        raise ValueError(
            f"`num_heads` must divide the width, {width}. Received: num_heads={num_heads}"
        )
    qkv_weights, qkv_bias, out_weights, out_bias = weights
    qkv = layers.dense(x, qkv_weights, qkv_bias)
    heads = tf.reshape(qkv, (particles, examples, length, 3, num_heads, width // num_heads))
    q, k, v = tf.unstack(layers.transpose(heads, (3, 0, 1, 4, 2, 5)))
    logits = tf.matmul(q, k, transpose_b=True) * (width // num_heads) ** -0.5
    if causal:
        logits += tf.constant(np.triu(np.full((length, length), _NEVER), k=1), tf.float32)
    seen = tf.matmul(tf.nn.softmax(logits), v)
    joined = tf.reshape(layers.transpose(seen, (0, 1, 3, 2, 4)), x.shape)
    return layers.dense(joined, out_weights, out_bias)


def init_self_attention(
    seed: Tensor, num: int, width: int, scale: Tensor | None = None
) -> list[Tensor]:
    """The weights of `self_attention`, as Keras's `MultiHeadAttention` of one head starts.

    Args:
        seed: `[2]`.
        num: number of problems.
        width: of the layer.
        scale: `[num]`, multiplies the weights; None for 1.

    Returns:
        The list of four that `self_attention` takes: weights of q, k, v and of the output
        Glorot-uniform, each for itself, and biases zero.
    """
    shape = (width, width)
    q, q_bias, k, k_bias, v, v_bias, out, out_bias = layers.init_weights(
        seed, num, [shape] * 4, scale
    )
    qkv, qkv_bias = tf.concat([q, k, v], axis=2), tf.concat([q_bias, k_bias, v_bias], axis=1)
    return [qkv, qkv_bias, out, out_bias]
