import keras
import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.networks.convolution import upsample
from problems import random_images

from meta import random, tasks
from meta.tasks.families import autoencoder

SEED = random.seed(6)


def mlp(**config):
    config = {"hidden_units": (5,), "bottleneck": 2, "batch_size": 8, **config}
    return autoencoder.MLPAutoencoder(random_images(), activation="tanh", **config)


def conv(**config):
    config = {"filters": (3,), "bottleneck": 2, "batch_size": 8, "image_size": None, **config}
    return autoencoder.ConvAutoencoder(random_images((8, 4, 2)), activation="tanh", **config)


def keras_mlp():
    hidden = [keras.layers.Dense(n, activation=a) for n, a in ((5, "tanh"), (2, None), (5, "tanh"))]
    outputs = [keras.layers.Dense(9), keras.layers.Reshape((3, 3, 1))]
    return keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten(), *hidden, *outputs])


def keras_conv():
    def convolution(filters, strides=1, activation=None):
        return keras.layers.Conv2D(filters, 3, strides, padding="same", activation=activation)

    encoder = [convolution(3, 2, "tanh"), convolution(2, 2)]
    decoder = []
    for last in (convolution(3, 1, "tanh"), convolution(2)):
        decoder += [keras.layers.UpSampling2D(2), last]
    return keras.Sequential([keras.Input((8, 4, 2)), *encoder, *decoder])


LOSSES = {
    "gaussian": lambda y, x: 0.5 * keras.losses.mean_squared_error(y, x),
    "bernoulli": lambda y, x: keras.losses.binary_crossentropy(y, x, from_logits=True),
}


@pytest.mark.parametrize("likelihood", autoencoder.LIKELIHOODS)
@pytest.mark.parametrize(("make_task", "make_model"), [(mlp, keras_mlp), (conv, keras_conv)])
def test_the_loss_is_that_of_the_keras_model(make_task, make_model, likelihood):
    task = make_task(likelihood=likelihood)
    setting = task.draw(SEED, 2)
    params = [p + 0.1 * random.normal(p.shape, SEED) for p in task.init(SEED, 2, setting)]
    images, targets = task.batch("train", SEED, 2, setting)
    losses = task.loss(params, (images, targets), setting)
    for i in range(2):
        model = make_model()
        model.set_weights([p[i].numpy() for p in params])
        expected = np.mean(LOSSES[likelihood](targets[i], model(images[i])))
        np.testing.assert_allclose(losses[i], expected, rtol=1e-5)


def test_the_target_is_the_image_without_the_noise():
    task = mlp(input_noise=[0.5])
    setting = task.draw(SEED, 500)
    dirty, clean = task.batch("train", SEED, 500, setting)
    known = {image.tobytes() for image in random_images().train.images}
    assert {image.tobytes() for image in clean.numpy().reshape(-1, 3, 3, 1)} <= known
    np.testing.assert_allclose(np.std(dirty - clean), 0.5, rtol=0.02)
    np.testing.assert_array_equal(*task.batch("validation", SEED, 500, setting))


def test_bernoulli_targets_are_the_pixels_between_darkest_and_brightest():
    train = random_images().train.images
    task = mlp(likelihood="bernoulli")
    setting = task.draw(SEED, 500)
    images, targets = task.batch("train", SEED, 500, setting)
    expected = (images - train.min()) / (train.max() - train.min())
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    for split in ("validation", "test"):
        assert np.min(task.batch(split, SEED, 500, setting)[1]) >= 0
        assert np.max(task.batch(split, SEED, 500, setting)[1]) <= 1


def test_upsampling_is_that_of_keras():
    x = random.normal((2, 3, 2, 4, 5), SEED)
    ours = tf.transpose(upsample(x, 3), (0, 4, 2, 3, 1))
    for i in range(2):
        expected = keras.layers.UpSampling2D(3)(tf.transpose(x[i], (3, 1, 2, 0)))
        np.testing.assert_array_equal(ours[i], expected)


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("mlp_autoencoder", {"likelihood": "nope"}, "`likelihood`.*'nope'"),
        ("mlp_autoencoder", {"bottleneck": 0}, "`bottleneck`.*0"),
        ("mlp_autoencoder", {"hidden_units": [0]}, "`hidden_units`.*0"),
        ("conv_autoencoder", {"bottleneck": 0}, "`bottleneck`.*0"),
        ("conv_autoencoder", {"filters": [0]}, "`filters`.*0"),
        ("conv_autoencoder", {"filters": [2, 2, 2]}, "`filters`.*8 and 4.*16.*\\[2, 2, 2\\]"),
    ],
)
def test_wrong_arguments_are_named(name, config, text):
    with pytest.raises(ValueError, match=text):
        tasks.get(name, dataset=random_images((8, 4, 2)), **config)
