import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.families.optimizer_training import RULES

from meta import random, tasks

SEED = random.seed(4)


def by_hand(task, theta, starts, noises, spectrum):
    """The loss of one particle, with NumPy and one quadratic at a time."""
    losses = []
    for start, noise in zip(starts, np.swapaxes(noises, 0, 1), strict=True):
        x, momenta = start.astype("float64"), None
        for step in range(task.num_steps):
            grad = spectrum * (x + noise[step])
            x, momenta = x + mlp_step(theta, grad, x, momenta, step), momentum(grad, momenta)
            losses.append(np.log1p(5 * np.sum(spectrum * x**2)))
    return np.mean(losses)


def momentum(grad, momenta):
    decays = np.array([0.5, 0.9])[:, None]
    return decays * (0 if momenta is None else momenta) + (1 - decays) * grad


def mlp_step(theta, grad, x, momenta, step):
    """`rules.MLP` with one hidden layer, from its paper."""
    inputs = np.stack([grad, x, *momentum(grad, momenta)])
    inputs /= np.sqrt(1e-5 + np.mean(inputs**2, axis=1, keepdims=True))
    time = np.tanh(step / 10.0 ** (np.arange(11) // 2) / np.where(np.arange(11) % 2, 3, 1) - 1)
    inputs = np.concatenate([inputs, np.tile(time[:, None], len(x))])
    w0, b0, w1, b1 = theta
    d, m = w1.T @ np.maximum(w0.T @ inputs + b0[:, None], 0) + b1[:, None]
    return -0.3 * d * np.exp(0.3 * m)


def test_the_loss_is_that_of_unrolls_by_hand():
    task = tasks.get("optimizer_training", dimension=3, num_steps=3, batch_size=2, noise=0.5)
    setting = task.draw(SEED, 2)
    theta = [p + 0.1 for p in task.init(SEED, 2, setting)]
    starts, noises = task.batch("train", SEED, 2, setting)
    assert starts.shape == (2, 2, 3)
    assert noises.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(tf.reduce_sum(setting["spectrum"], axis=1), 1, rtol=1e-6)
    losses = task.loss(theta, (starts, noises), setting)
    for i in range(2):
        arguments = ([p[i].numpy() for p in theta], starts[i].numpy(), noises[i].numpy())
        expected = by_hand(task, *arguments, setting["spectrum"][i].numpy())
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_theta_that_does_nothing_leaves_the_quadratics_where_they_are(rule):
    task = tasks.get("optimizer_training", rule=rule)
    setting = task.draw(SEED, 2)
    starts, noises = task.batch("train", SEED, 2, setting)
    zeros = [tf.zeros_like(p) for p in task.init(SEED, 2, setting)]
    values = 0.5 * np.sum(setting["spectrum"][:, None] * starts**2, axis=-1)
    expected = np.log1p(10 * values).mean(axis=1)
    np.testing.assert_allclose(task.loss(zeros, (starts, noises), setting), expected, rtol=1e-5)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`rule`.*'nope'"):
        tasks.get("optimizer_training", rule="nope")
    with pytest.raises(ValueError, match="`num_steps`.*0"):
        tasks.get("optimizer_training", num_steps=0)
