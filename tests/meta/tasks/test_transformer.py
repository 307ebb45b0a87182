import keras
import numpy as np
import pytest
import tensorflow as tf

from meta import random, tasks

SEED = random.seed(4)


def example(**config):
    task = tasks.get("transformer", **config)
    setting = task.draw(SEED, 2)
    params = task.init(SEED, 2, setting)
    params = [
        p + 0.3 * random.normal(p.shape, random.fold_in(SEED, i)) for i, p in enumerate(params)
    ]
    return task, params, task.batch("train", SEED, 2, setting)[0]


def keras_logits(task, params, characters):
    """Of one particle: the same network, made of Keras's layers."""
    width, heads = task.width, task.num_heads
    params = [p.numpy() for p in params]

    def norm(x, scale, bias):
        layer = keras.layers.LayerNormalization(epsilon=1e-5)
        layer.build(x.shape)
        layer.set_weights([scale, bias])
        return layer(x)

    def dense(x, weights, bias, activation=None):
        layer = keras.layers.Dense(weights.shape[1], activation=activation)
        layer.build(x.shape)
        layer.set_weights([weights, bias])
        return layer(x)

    def attend(x, qkv, qkv_bias, out, out_bias):
        layer = keras.layers.MultiHeadAttention(heads, width // heads)
        layer.build(x.shape, x.shape)
        split = (width, heads, width // heads)
        weights = []
        for w, b in zip(np.split(qkv, 3, axis=1), np.split(qkv_bias, 3), strict=True):
            weights.append((w.reshape(split), b.reshape(split[1:])))
        query, key, value = weights
        # Keras keeps the query's weights first, then the key's, then the value's.
        layer.set_weights([*query, *key, *value, out.reshape(*split[1:], width), out_bias])
        return layer(x, x, use_causal_mask=True)

    embedding, positions, *blocks, scale, bias, last, last_bias = params
    x = tf.gather(embedding, characters) + positions
    for own in np.reshape(np.arange(len(blocks)), (task.num_blocks, 12)):
        w = [blocks[i] for i in own]
        x = x + attend(norm(x, *w[:2]), *w[2:6])
        x = x + dense(dense(norm(x, *w[6:8]), *w[8:10], task.activation), *w[10:])
    return dense(norm(x, scale, bias), last, last_bias)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_it_is_the_network_that_keras_layers_make(num_blocks):
    task, params, characters = example(num_blocks=num_blocks, width=8, num_heads=2)
    ours = task.logits(params, characters)
    for particle in range(2):
        theirs = keras_logits(task, [p[particle] for p in params], characters[particle])
        np.testing.assert_allclose(ours[particle], theirs, rtol=1e-4, atol=1e-4)


def test_a_character_changes_nothing_before_it():
    task, params, characters = example(num_blocks=2, sequence_length=8)
    changed = tf.concat([characters[..., :5], 63 - characters[..., 5:]], axis=-1)
    before, after = task.logits(params, characters), task.logits(params, changed)
    np.testing.assert_allclose(before[:, :, :5], after[:, :, :5], atol=1e-6)
    assert (np.abs(before - after)[:, :, 5:].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize(("argument", "value"), [("num_heads", 3), ("width", 0)])
def test_what_does_not_fit_is_named(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*{value}"):
        tasks.get("transformer", **{argument: value})
