import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from problems import random_images, small_convnet, small_mlp

from meta import datasets, random, tasks

SEED = random.seed(3)
SETTING = None  # Classification of images does not look at it in its loss.


def plain(num):
    """The setting of `num` problems without noise, at Keras's scale."""
    return small_mlp().draw(SEED, num)


def keras_mlp():
    layers = [keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten(), *layers])


def keras_convnet():
    def convolution(filters, strides):
        return keras.layers.Conv2D(filters, 3, strides, padding="same", activation="tanh")

    last = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((6, 7, 2)), convolution(3, 1), convolution(4, 2), *last])


@tf.function(jit_compile=True)
def loss_and_gradient(task, params, data):
    with tf.GradientTape() as tape:
        tape.watch(params)
        loss = task.loss(params, data, SETTING)
    return loss, tape.gradient(loss, params)


@pytest.mark.parametrize(
    ("make_task", "make_model"), [(small_mlp, keras_mlp), (small_convnet, keras_convnet)]
)
def test_loss_and_gradient_are_those_of_the_keras_model(make_task, make_model):
    task = make_task(activation="tanh")
    params = [p + 0.1 * random.normal(p.shape, SEED) for p in task.init(SEED, 2, plain(2))]
    images, labels = task.batch("train", SEED, 2, plain(2))
    losses, grads = loss_and_gradient(task, params, (images, labels))
    for i in range(2):
        model = make_model()
        model.set_weights([p[i].numpy() for p in params])
        with tf.GradientTape() as tape:
            loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            loss = loss_function(labels[i], model(images[i]))
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        expected = tape.gradient(loss, [v.value for v in model.trainable_variables])
        for ours, theirs in zip(grads, expected, strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make_task", [small_mlp, small_convnet])
def test_particles_do_not_interact(make_task):
    task = make_task()
    params, data = task.init(SEED, 3, plain(3)), task.batch("train", SEED, 3, plain(3))
    losses, grads = loss_and_gradient(task, params, data)
    others = tf.constant([1.0, 0.0, 1.0])
    moved = [p + tf.reshape(others, (3, *(1,) * (p.shape.rank - 1))) for p in params]
    moved_losses, moved_grads = loss_and_gradient(task, moved, data)
    assert (np.asarray(losses != moved_losses)).tolist() == [True, False, True]
    for grad, moved_grad in zip(grads, moved_grads, strict=True):
        np.testing.assert_array_equal(grad[1], moved_grad[1])


@pytest.mark.parametrize("make_task", [small_mlp, small_convnet])
def test_the_loss_is_twice_differentiable_under_xla(make_task):
    task = make_task(activation="tanh")
    params, data = task.init(SEED, 2, plain(2)), task.batch("train", SEED, 2, plain(2))
    direction = [random.normal(p.shape, random.fold_in(SEED, i)) for i, p in enumerate(params)]

    @tf.function(jit_compile=True)
    def hessian_times_direction(params):
        with tf.GradientTape() as outer:
            outer.watch(params)
            _, grads = loss_and_gradient(task, params, data)
            slope = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(grads, direction, strict=True)])
        return outer.gradient(slope, params)

    def gradient_at(distance):
        moved = [p + distance * d for p, d in zip(params, direction, strict=True)]
        return loss_and_gradient(task, moved, data)[1]

    for product, ahead, behind in zip(
        hessian_times_direction(params), gradient_at(0.002), gradient_at(-0.002), strict=True
    ):
        difference = (ahead - behind) / 0.004
        np.testing.assert_allclose(product, difference, rtol=0.02, atol=1e-3)


def test_initial_weights_are_glorot_uniform_and_independent():
    w0, b0, w1, _ = small_mlp().init(SEED, 1000, plain(1000))
    filters, *_ = small_convnet().init(SEED, 1000, plain(1000))
    assert w0.shape == (1000, 9, 4)
    assert filters.shape == (1000, 3, 3, 2, 3)
    # The units of the two sides of a layer; a unit of a convolution has nine weights a channel.
    for weights, fans in ((w0, 13), (w1, 6), (filters, 9 * 5)):
        assert np.abs(weights).max() <= np.sqrt(6 / fans)
        np.testing.assert_allclose(np.std(weights), np.sqrt(2 / fans), rtol=0.02)
    assert not b0.numpy().any()
    assert (w0[0] != w0[1]).numpy().any()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_batches_come_from_their_split(split):
    dataset = random_images()
    expected = {image.tobytes() for image in dataset.split(split).images}
    images, labels = small_mlp().batch(split, SEED, 4, plain(4))
    assert images.shape == (4, 8, 3, 3, 1)
    assert labels.shape == (4, 8)
    assert {image.tobytes() for image in images.numpy().reshape(-1, 3, 3, 1)} <= expected
    again, _ = small_mlp().batch(split, SEED, 4, plain(4))
    other, _ = small_mlp().batch(split, SEED + 1, 4, plain(4))
    np.testing.assert_array_equal(images, again)
    assert (images != other).numpy().any()


def test_config_makes_the_task_again():
    plain = {"image_size": None, "init_scale": 1.0, "input_noise": 0.0, "label_noise": 0.0}
    common = {"dataset": "random", "activation": "tanh", "batch_size": 8, **plain}
    assert small_mlp(activation="tanh").get_config() == {**common, "hidden_units": [4]}
    convnet = {**common, "filters": [3, 4], "strides": [1, 2]}
    assert small_convnet(activation="tanh").get_config() == convnet


@pytest.mark.parametrize(
    ("name", "given", "loaded"),
    [
        ("digits_mlp", None, "digits"),
        ("patches_convnet", None, "patches"),
        ("patches_convnet", "cifar10", "cifar10"),
    ],
)
def test_a_task_has_a_dataset_of_its_own(name, given, loaded, monkeypatch):
    def load(name, data_dir, size):
        return random_images()._replace(name=name)

    monkeypatch.setattr(datasets, "load", load)
    assert tasks.get(name, dataset=given, data_dir=None).get_config()["dataset"] == loaded


def test_the_convnet_has_six_layers_on_any_images():
    with tfds.testing.mock_data(num_examples=200):
        task = tasks.get("patches_convnet", dataset="cifar10", batch_size=2)
    params = task.init(SEED, 1, plain(1))
    assert [p.shape[1:].as_list() for p in params[::2]] == [
        [3, 3, 3, 8],
        [3, 3, 8, 8],
        [3, 3, 8, 16],
        [3, 3, 16, 16],
        [3, 3, 16, 32],
        [32, 10],
    ]
    images, labels = task.batch("test", SEED, 1, plain(1))
    assert images.shape == (1, 2, 32, 32, 3)
    assert 1 < task.loss(params, (images, labels), SETTING).numpy()[0] < 5


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("digits_mlp", {"hidden_units": [0]}, "`hidden_units`.*0"),
        ("digits_mlp", {"hidden_units": ["a"]}, "`hidden_units`"),
        ("digits_mlp", {"batch_size": 0}, "`batch_size`.*0"),
        ("digits_mlp", {"activation": "nope"}, "nope"),
        ("digits_mlp", {"nope": 1}, "nope"),
        ("patches_convnet", {"filters": [8, 0], "strides": [1, 1]}, "`filters`.*0"),
        ("patches_convnet", {"filters": [8], "strides": [1.5]}, "`strides`.*1.5"),
        ("patches_convnet", {"filters": [8], "strides": [1, 2]}, "`filters`.*\\[8\\].*\\[1, 2\\]"),
        ("patches_convnet", {"filters": [], "strides": []}, "`filters`"),
        ("patches_convnet", {"batch_size": 0}, "`batch_size`.*0"),
        ("nope", {}, "`task`.*'nope'"),
    ],
)
def test_wrong_arguments_are_named(name, config, text, monkeypatch):
    monkeypatch.setattr(datasets, "load", pytest.fail)
    with pytest.raises(ValueError, match=text):
        tasks.get(name, **config)
