import keras
import numpy as np
import pytest
from problems import random_images, small_mlp

from meta import random, tasks

SEED = random.seed(3)


def test_the_loss_is_keras_loss_of_the_keras_model():
    task = small_mlp(activation="tanh")
    params = task.init(SEED, 2)
    images, labels = task.batch("train", SEED, 2)
    losses = task.loss(params, (images, labels)).numpy()
    for i in range(2):
        layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((9,)), *layers])
        model.set_weights([p[i].numpy() for p in params])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        np.testing.assert_allclose(losses[i], loss(labels[i], model(images[i])), rtol=1e-5)


def test_initial_weights_are_glorot_uniform_and_independent():
    w0, b0, w1, _ = small_mlp().init(SEED, 1000)
    assert w0.shape == (1000, 9, 4)
    for weights, limit in ((w0, np.sqrt(6 / 13)), (w1, np.sqrt(6 / 6))):
        assert np.abs(weights).max() <= limit
        np.testing.assert_allclose(np.std(weights), limit / np.sqrt(3), rtol=0.02)
    assert not b0.numpy().any()
    assert (w0[0] != w0[1]).numpy().any()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_batches_come_from_their_split(split):
    dataset = random_images()
    expected = {image.tobytes() for image in dataset.split(split).images}
    images, labels = small_mlp().batch(split, SEED, 4)
    assert images.shape == (4, 8, 9)
    assert labels.shape == (4, 8)
    assert {image.tobytes() for image in images.numpy().reshape(-1, 9)} <= expected
    again, _ = small_mlp().batch(split, SEED, 4)
    other, _ = small_mlp().batch(split, SEED + 1, 4)
    np.testing.assert_array_equal(images, again)
    assert (images != other).numpy().any()


def test_config_makes_the_task_again():
    config = small_mlp(activation="tanh").get_config()
    assert config == {
        "dataset": "random",
        "hidden_units": [4],
        "activation": "tanh",
        "batch_size": 8,
    }


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"hidden_units": [0]}, "`hidden_units`.*0"),
        ({"batch_size": 0}, "`batch_size`.*0"),
        ({"activation": "nope"}, "nope"),
        ({"nope": 1}, "nope"),
        ({"hidden_units": ["a"]}, "`hidden_units`"),
    ],
)
def test_wrong_arguments_are_named(config, text):
    with pytest.raises(ValueError, match=text):
        tasks.get("digits_mlp", **config)
    with pytest.raises(ValueError, match="`task`.*'nope'"):
        tasks.get("nope")
