import keras
import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.families.analytic_continuation import fermionic_kernel

from meta import random, tasks

SEED = random.seed(7)


def problem(num=4, **config):
    """A task, and its problems as float64 arrays."""
    task = tasks.get("analytic_continuation", **config)
    drawn = task.draw(SEED, num)
    return task, drawn, {name: np.asarray(x, np.float64) for name, x in drawn.items()}


def error(answer, spectrum):
    return np.sum(np.square(answer - spectrum)) / np.sum(np.square(spectrum))


def test_the_kernel_is_the_formula_and_does_not_overflow():
    times, frequencies = np.linspace(0, 10, 11), np.linspace(-8, 8, 33)
    found = fermionic_kernel(
        tf.constant(times[None], tf.float32), frequencies.astype("float32"), tf.constant([10.0])
    )[0]
    exact = np.exp(-times[:, None] * frequencies) / (1 + np.exp(-10.0 * frequencies))
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=1e-30)
    extreme = fermionic_kernel(
        tf.constant([[0.0, 500.0, 1000.0]]), np.float32([-8, 0, 8]), tf.constant([1000.0])
    )[0]
    np.testing.assert_allclose(extreme, [[0, 0.5, 1], [0, 0.5, 0], [1, 0.5, 0]], atol=1e-30)


def test_spectra_and_measurements_are_what_the_settings_say():
    _, _, drawn = problem(num=400, noise=0.02, num_times=16)
    spectrum = drawn["spectrum"]
    assert spectrum.min() >= 0
    np.testing.assert_allclose(spectrum.sum(axis=1), 1.0, rtol=1e-5)
    exact = np.einsum("ptw,pw->pt", drawn["kernel"], spectrum)
    residual = drawn["correlation"] - exact
    np.testing.assert_allclose(residual.std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(residual.mean(), 0.0, atol=1e-3)
    # The two ends are the occupied and the empty fraction of the spectrum.
    np.testing.assert_allclose(exact[:, 0] + exact[:, -1], 1.0, rtol=1e-5)


def test_the_training_loss_is_chi2_and_the_others_are_the_distance():
    task, setting, drawn = problem()
    logits = random.normal((4, task.num_frequencies), random.fold_in(SEED, 1))
    answer = np.asarray(tf.nn.softmax(logits), np.float64)
    fitted = np.einsum("ptw,pw->pt", drawn["kernel"], answer)
    chi2 = np.mean(((fitted - drawn["correlation"]) / 1e-3) ** 2, axis=1)
    at_flat = np.mean(((drawn["kernel"].mean(2) - drawn["correlation"]) / 1e-3) ** 2, axis=1)
    expected = {
        "train": chi2 / (1 + at_flat),
        "validation": [error(*pair) for pair in zip(answer, drawn["spectrum"], strict=True)],
    }
    expected["test"] = expected["validation"]
    for split, losses in expected.items():
        batch = task.batch(split, SEED, 4, setting)
        np.testing.assert_allclose(task.loss([logits], batch, setting), losses, rtol=2e-3)


def test_training_does_not_see_the_spectrum():
    task, setting, _ = problem()
    batch = task.batch("train", SEED, 4, setting)
    assert not batch["spectrum"].numpy().any()
    logits = random.normal((4, task.num_frequencies), SEED)
    other = {**setting, "spectrum": tf.reverse(setting["spectrum"], [0])}
    np.testing.assert_array_equal(
        task.loss([logits], batch, setting), task.loss([logits], batch, other)
    )


def test_following_the_data_first_helps():
    task, setting, _ = problem(num=8)
    logits = tf.Variable(task.init(SEED, 8, setting)[0])
    optimizer = keras.optimizers.Adam(0.1)
    data = {split: task.batch(split, SEED, 8, setting) for split in ("train", "validation")}
    start = task.loss([logits], data["validation"], setting)
    for _ in range(100):
        with tf.GradientTape() as tape:
            loss = task.loss([logits], data["train"], setting)
        optimizer.apply(tape.gradient(loss, [logits]), [logits])
    end = task.loss([logits], data["validation"], setting)
    assert np.mean(end) < 0.6 * np.mean(start)


def test_a_setting_that_is_not_positive_is_named():
    with pytest.raises(ValueError, match="`noise`.*0.0"):
        tasks.get("analytic_continuation", noise=[0.1, 0.0])
