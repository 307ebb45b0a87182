import keras
import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.networks import attention

from meta import random

SEED = random.seed(4)
P, B, T, WIDTH = 2, 3, 5, 8


def example():
    x = random.normal((P, B, T, WIDTH), random.fold_in(SEED, 0))
    weights = attention.init_self_attention(random.fold_in(SEED, 1), P, WIDTH)
    return x, [w + 0.1 * random.normal(w.shape, SEED) for w in weights]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_it_is_the_keras_layer(num_heads, causal):
    x, weights = example()
    ours = attention.self_attention(x, weights, num_heads, causal)
    head = WIDTH // num_heads
    for i in range(P):
        qkv, bias, out, out_bias = (w[i].numpy() for w in weights)
        theirs = []
        for w, b in zip(np.split(qkv, 3, axis=1), np.split(bias, 3), strict=True):
            theirs += [w.reshape(WIDTH, num_heads, head), b.reshape(num_heads, head)]
        layer = keras.layers.MultiHeadAttention(num_heads, head)
        layer.build(x.shape[1:], x.shape[1:])
        layer.set_weights([*theirs, out.reshape(num_heads, head, WIDTH), out_bias])
        expected = layer(x[i], x[i], use_causal_mask=causal)
        np.testing.assert_allclose(ours[i], expected, rtol=1e-4, atol=1e-5)


def test_causal_attention_does_not_see_what_comes_later():
    x, weights = example()
    later = tf.concat([x[:, :, :3], x[:, :, 3:] + 1.0], axis=2)
    for causal in (True, False):
        a, b = (attention.self_attention(y, weights, 2, causal).numpy() for y in (x, later))
        assert np.array_equal(a[:, :, :3], b[:, :, :3]) == causal
        assert (a[:, :, 3:] != b[:, :, 3:]).any()


def test_initial_weights_are_those_of_square_layers():
    scale = tf.fill([500], 2.0)
    qkv, qkv_bias, out, out_bias = attention.init_self_attention(SEED, 500, WIDTH, scale)
    limit = 2.0 * np.sqrt(6 / (2 * WIDTH))
    for weights, shape in ((qkv, (500, WIDTH, 3 * WIDTH)), (out, (500, WIDTH, WIDTH))):
        assert weights.shape == shape
        assert 0.99 * limit < np.abs(weights).max() <= limit
    assert not qkv_bias.numpy().any()
    assert not out_bias.numpy().any()


def test_heads_must_divide_the_width():
    x, weights = example()
    with pytest.raises(ValueError, match="`num_heads`.*3"):
        attention.self_attention(x, weights, 3)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_twice_differentiable_in_a_compiled_loop(causal):
    x, weights = example()

    @tf.function(jit_compile=True, autograph=False)
    def meta_gradient(scale):
        """Of a loss after two steps of gradient descent, in their size."""

        def loss(weights):
            return tf.reduce_mean(tf.square(attention.self_attention(x, weights, 2, causal)))

        def body(i, weights):
            with tf.GradientTape() as inner:
                inner.watch(weights)
                value = loss(weights)
            grads = inner.gradient(value, weights)
            return i + 1, [w - scale * g for w, g in zip(weights, grads, strict=True)]

        with tf.GradientTape() as tape:
            tape.watch(scale)
            start = (tf.constant(0), weights)
            _, end = tf.while_loop(lambda i, _: i < 2, body, start, maximum_iterations=2)
            value = loss(end)
        return value, tape.gradient(value, scale)

    scale, step = tf.constant(0.3), 0.01
    _, slope = meta_gradient(scale)
    difference = (meta_gradient(scale + step)[0] - meta_gradient(scale - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-2)
