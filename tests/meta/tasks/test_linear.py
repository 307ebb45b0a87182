import numpy as np
import pytest
import tensorflow as tf
from problems import loss_and_gradient, random_table

from meta import datasets, random, tasks

SEED = random.seed(4)


def test_ridge_regression_has_its_minimum_where_the_normal_equations_say():
    dataset, l2 = random_table(None), 0.1
    task = tasks.get("linear_regression", dataset=dataset, l2=l2, condition=30.0)
    setting = task.draw(SEED, 1)
    inputs, targets = dataset.train
    scaled = np.c_[inputs * setting["factors"][0], np.ones(len(inputs))].astype("float64")
    penalty = l2 * len(inputs) * np.diag([1, 1, 1, 0])
    solution = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ targets)
    params = [
        tf.constant(solution[None, :3, None], tf.float32),
        tf.constant(solution[None, 3:], tf.float32),
    ]
    data = (tf.constant(scaled[None, :, :3], tf.float32), targets[None], tf.constant([l2]))
    loss, grads = loss_and_gradient(task, params, data, setting)
    for grad in grads:
        np.testing.assert_allclose(grad, 0, atol=1e-5)
    residuals = scaled @ solution - targets
    expected = np.mean(residuals**2) + l2 * np.sum(solution[:3] ** 2)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def test_columns_have_the_condition_that_was_asked_for():
    task = tasks.get("linear_regression", dataset=8, condition=[100.0, 4.0], batch_size=4096)
    setting = task.draw(SEED, 6)
    squares = np.square(setting["factors"])
    np.testing.assert_allclose(squares.mean(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(squares[:, 0] / squares[:, -1], setting["condition"], rtol=1e-4)
    inputs, targets, _ = task.batch("validation", SEED, 6, setting)
    np.testing.assert_allclose(np.mean(inputs**2, axis=1), squares, rtol=0.15)
    model = setting["model"].numpy()[..., 0]
    expected = np.einsum("pbc,pc->pb", inputs, model) / np.sqrt(8)
    np.testing.assert_allclose(targets, expected, atol=1e-4)


@pytest.mark.parametrize("dataset", [random_table(None), 3])
def test_noise_and_penalty_are_for_training_only(dataset):
    noisy = tasks.get("linear_regression", dataset=dataset, noise=0.5, l2=0.2, batch_size=2000)
    clean = tasks.get("linear_regression", dataset=dataset, batch_size=2000)
    settings = [task.draw(SEED, 1) for task in (noisy, clean)]
    for split in datasets.SPLITS:
        ours, plain = (
            task.batch(split, SEED, 1, setting)
            for task, setting in zip((noisy, clean), settings, strict=True)
        )
        np.testing.assert_array_equal(ours[0], plain[0])
        difference, expected = np.std(ours[1] - plain[1]), 0.5 * (split == "train")
        np.testing.assert_allclose(difference, expected, rtol=0.1)
        np.testing.assert_allclose(ours[2], [0.2 * (split == "train")])


def test_synthetic_labels_are_drawn_from_the_probabilities_of_the_model():
    task = tasks.get("logistic_regression", dataset=2, num_classes=3, batch_size=20000)
    setting = task.draw(SEED, 1)
    inputs, labels, _ = task.batch("test", SEED, 1, setting)
    right = [setting["model"], tf.zeros((1, 3))]
    # A model with the true probabilities has the lowest loss: its gradient is zero.
    _, grads = loss_and_gradient(task, right, (inputs, labels, tf.zeros(1)), setting)
    for grad in grads:
        np.testing.assert_allclose(grad, 0, atol=0.02)
    wrong = [-setting["model"], tf.zeros((1, 3))]
    _, grads = loss_and_gradient(task, wrong, (inputs, labels, tf.zeros(1)), setting)
    assert np.abs(grads[0]).max() > 0.1


def test_logistic_loss_is_the_mean_negative_log_probability():
    dataset = random_table(3)
    task = tasks.get("logistic_regression", dataset=dataset, batch_size=8)
    setting = task.draw(SEED, 2)
    params = task.init(SEED, 2, setting)
    inputs, labels, penalty = task.batch("train", SEED, 2, setting)
    logits = np.einsum("pbc,pco->pbo", inputs, params[0])
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(likelihood, labels.numpy()[..., None], axis=-1)
    expected = -np.log(chosen).mean(axis=(1, 2))
    np.testing.assert_allclose(
        task.loss(params, (inputs, labels, penalty), setting), expected, 1e-5
    )


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("linear_regression", {"dataset": random_table(3)}, "`dataset`.*a number as target"),
        ("logistic_regression", {"dataset": random_table(None)}, "`dataset`.*classes as target"),
        ("linear_regression", {"dataset": 0}, "`dataset`.*0"),
        ("logistic_regression", {"dataset": 3, "num_classes": 1}, "`num_classes`.*1"),
        ("logistic_regression", {"dataset": 3, "batch_size": 0}, "`batch_size`.*0"),
        ("linear_regression", {"dataset": 3, "l2": float("nan")}, "`l2`.*nan"),
    ],
)
def test_wrong_arguments_are_named(name, config, text):
    with pytest.raises(ValueError, match=text):
        tasks.get(name, **config)
