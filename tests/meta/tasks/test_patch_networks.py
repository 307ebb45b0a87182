import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import random_images

from meta import random, tasks

SEED = random.seed(9)
SHAPE, PATCH, WIDTH, HEADS, PATCHES = (4, 6, 2), 2, 8, 2, 6
CONFIG = {"patch_size": PATCH, "width": WIDTH, "num_blocks": 2, "activation": "gelu"}


def example(name, **config):
    task = tasks.get(name, dataset=random_images(SHAPE), batch_size=8, **CONFIG, **config)
    setting = task.draw(SEED, 2)
    params = task.init(SEED, 2, setting)
    params = [
        p + 0.1 * random.normal(p.shape, random.fold_in(SEED, i)) for i, p in enumerate(params)
    ]
    return task, params, task.batch("train", SEED, 2, setting), setting


def norm():
    return keras.layers.LayerNormalization(epsilon=1e-5)


def perceptron(x, size):
    hidden = keras.layers.Dense(2 * size, activation="gelu")(x)
    return keras.layers.Dense(size)(hidden)


def attention(x):
    return keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(x, x)


def over_patches(x):
    mixed = perceptron(keras.layers.Permute((2, 1))(x), PATCHES)
    return keras.layers.Permute((2, 1))(mixed)


def keras_model(mix, positions):
    """The network, up to its positions, which are constants here."""
    inputs = keras.Input(SHAPE)
    # A convolution whose windows are the patches.
    x = keras.layers.Conv2D(WIDTH, PATCH, PATCH)(inputs)
    x = keras.layers.Reshape((PATCHES, WIDTH))(x) + positions
    for _ in range(CONFIG["num_blocks"]):
        x = x + mix(norm()(x))
        x = x + perceptron(norm()(x), WIDTH)
    x = keras.layers.GlobalAveragePooling1D()(norm()(x))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def keras_weights(params, name):
    """Those of one particle: q, k and v apart, and by head."""
    filters, *rest = params
    weights = [filters.reshape(PATCH, PATCH, SHAPE[-1], WIDTH)]
    for param in rest:
        if name == "vision_transformer" and param.shape[-1] == 3 * WIDTH:
            shape = (*param.shape[:-1], HEADS, WIDTH // HEADS)
            weights.append([part.reshape(shape) for part in np.split(param, 3, axis=-1)])
        else:
            weights.append(param)
    return weights


def in_keras_order(weights):
    """Keras has the bias of q right after its weights; its output layer is by head."""
    flat, i = [], 0
    while i < len(weights):
        if isinstance(weights[i], list):
            for pair in zip(weights[i], weights[i + 1], strict=True):
                flat += pair
            out, out_bias = weights[i + 2 : i + 4]
            flat += [out.reshape(HEADS, WIDTH // HEADS, WIDTH), out_bias]
            i += 4
        else:
            flat.append(weights[i])
            i += 1
    return flat


@pytest.mark.parametrize(
    ("name", "mix", "config"),
    [
        ("vision_transformer", attention, {"num_heads": HEADS}),
        ("mlp_mixer", over_patches, {}),
    ],
)
def test_the_loss_is_that_of_the_keras_model(name, mix, config):
    task, params, (images, labels), setting = example(name, **config)
    losses = task.loss(params, (images, labels), setting)
    positions = np.zeros((2, PATCHES, WIDTH))
    if name == "vision_transformer":
        *params, positions = params
    for i in range(2):
        model = keras_model(mix, tf.constant(positions[i], "float32"))
        weights = keras_weights([p[i].numpy() for p in params], name)
        model.set_weights(in_keras_order(weights))
        loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        expected = loss_function(labels[i], model(images[i]))
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["vision_transformer", "mlp_mixer"])
def test_the_scale_of_the_start_is_that_of_weights_but_not_of_normalisations(name):
    task = tasks.get(name, dataset=random_images(SHAPE), init_scale=[1.0], **CONFIG)
    twice = tasks.get(name, dataset=random_images(SHAPE), init_scale=[2.0], **CONFIG)
    starts = [t.init(SEED, 1, t.draw(SEED, 1)) for t in (task, twice)]
    for once, doubled in zip(*starts, strict=True):
        is_normalisation = once.shape.rank == 2 and once.numpy().all()
        np.testing.assert_allclose(doubled, once * (1.0 if is_normalisation else 2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("vision_transformer", {"num_heads": 3}, "`num_heads`.*8.*3"),
        ("vision_transformer", {"num_heads": 0}, "`num_heads`.*0"),
        ("vision_transformer", {"patch_size": 3}, "`patch_size`.*4 and 6.*3"),
        ("mlp_mixer", {"patch_size": 4}, "`patch_size`.*4 and 6.*4"),
        ("mlp_mixer", {"width": 0}, "`width`.*0"),
        ("mlp_mixer", {"num_blocks": 0}, "`num_blocks`.*0"),
    ],
)
def test_wrong_arguments_are_named(name, config, text):
    with pytest.raises(ValueError, match=text):
        tasks.get(name, dataset=random_images(SHAPE), **{**CONFIG, **config})
