import keras
import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.networks import layers
from problems import loss_and_gradient, random_table

from meta import random, tasks

SEED = random.seed(4)


class SmoothAbsolute(keras.losses.Loss):
    """`sqrt(1 + e^2) - 1`."""

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.sqrt(1 + (y_true - y_pred) ** 2) - 1, axis=-1)


@pytest.mark.parametrize(
    ("num_classes", "name", "loss_function"),
    [
        (3, "squared", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        (None, "squared", keras.losses.MeanSquaredError()),
        (None, "log_cosh", keras.losses.LogCosh()),
        (None, "smooth_absolute", SmoothAbsolute()),
    ],
)
def test_loss_and_gradient_are_those_of_the_keras_model(num_classes, name, loss_function):
    task = tasks.get(
        "table_mlp",
        dataset=random_table(num_classes),
        hidden_units=[4, 5],
        activation="silu",
        regression_loss=name,
    )
    setting = task.draw(SEED, 2)
    params = [p + 0.1 * random.normal(p.shape, SEED) for p in task.init(SEED, 2, setting)]
    inputs, targets = task.batch("train", SEED, 2, setting)
    losses, grads = loss_and_gradient(task, params, (inputs, targets), setting)
    for i in range(2):
        hidden = [keras.layers.Dense(units, activation="silu") for units in (4, 5)]
        model = keras.Sequential([keras.Input((3,)), *hidden, keras.layers.Dense(num_classes or 1)])
        model.set_weights([p[i].numpy() for p in params])
        with tf.GradientTape() as tape:
            loss = loss_function(targets[i][:, None], model(inputs[i]))
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        expected = tape.gradient(loss, [v.value for v in model.trainable_variables])
        for ours, theirs in zip(grads, expected, strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", layers.REGRESSION_LOSSES)
def test_regression_losses_are_finite_with_a_finite_slope_everywhere(name):
    errors = tf.constant([[0.0], [1e-20], [-100.0], [1e4]])
    with tf.GradientTape() as tape:
        tape.watch(errors)
        loss = layers.regression_loss(name, tf.zeros_like(errors), errors)
    assert np.isfinite(loss).all()
    assert np.isfinite(tape.gradient(loss, errors)).all()
    np.testing.assert_allclose(loss[:2], 0, atol=1e-7)


def test_noise_is_in_training_batches_only():
    arguments = {"batch_size": 2000, "input_noise": 0.5, "target_noise": 0.3}
    for num_classes in (3, None):
        noisy = tasks.get("table_mlp", dataset=random_table(num_classes), **arguments)
        clean = tasks.get("table_mlp", dataset=random_table(num_classes), batch_size=2000)
        for split in ("train", "validation", "test"):
            (x, y), (clean_x, clean_y) = (
                task.batch(split, SEED, 1, task.draw(SEED, 1)) for task in (noisy, clean)
            )
            amount = float(split == "train")
            np.testing.assert_allclose(np.std(x - clean_x), 0.5 * amount, rtol=0.05)
            if num_classes:  # A third of the labels that are drawn anew are right.
                changed = np.mean(y != clean_y)
                np.testing.assert_allclose(changed, 0.3 * 2 / 3 * amount, atol=0.03)
            else:
                np.testing.assert_allclose(np.std(y - clean_y), 0.3 * amount, rtol=0.1)


def test_wrong_arguments_are_named():
    for config, text in (
        ({"hidden_units": [0]}, "`hidden_units`.*0"),
        ({"activation": "nope"}, "nope"),
        ({"regression_loss": "nope"}, "`regression_loss`.*'nope'"),
    ):
        with pytest.raises(ValueError, match=text):
            tasks.get("table_mlp", dataset=random_table(3), **config)
