import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.families.vae import VAE, divergence
from problems import random_images

from meta import random

SEED = random.seed(8)
LATENT, PIXELS = 2, 9
LOG_2PI = np.log(2 * np.pi)


def log_normal(x, mean, variance):
    return -0.5 * (np.square(x - mean) / variance + np.log(variance) + LOG_2PI)


def test_the_divergence_is_its_monte_carlo_estimate():
    mean = np.array([[[0.5, -1.0], [0.0, 0.0]]])
    log_variance = np.array([[[0.3, -1.5], [0.0, 0.0]]])
    variance = np.exp(log_variance[0, 0])
    z = mean[0, 0] + np.sqrt(variance) * np.random.default_rng(0).standard_normal((400_000, 2))
    ratio = log_normal(z, mean[0, 0], variance) - log_normal(z, 0.0, 1.0)
    ours = divergence(tf.constant(mean), tf.constant(log_variance))
    # The second example is the prior itself.
    np.testing.assert_allclose(ours, [0.5 * ratio.sum(axis=1).mean()], rtol=0.01)


def linear_vae(decoder, log_variance, rng):
    """A task, and parameters of its linear encoder and decoder: the best means for both."""
    task = VAE(random_images(), hidden_units=(), bottleneck=LATENT, batch_size=8)
    bias = rng.standard_normal(PIXELS)
    precision = np.eye(LATENT) + decoder @ decoder.T
    encoder = decoder.T @ np.linalg.inv(precision)
    params = [
        np.concatenate([encoder, np.zeros((PIXELS, LATENT))], axis=1),
        np.concatenate([-bias @ encoder, log_variance]),
        decoder,
        bias,
    ]
    return task, [tf.constant(p[None], tf.float32) for p in params]


def expected_loss(task, params, beta=1.0):
    """Without the noise's randomness: the loss is quadratic in it, and these points are exact."""
    setting = {**task.draw(SEED, 1), "beta": tf.constant([beta])}
    images, targets, noise = task.batch("validation", SEED, 1, setting)
    points = np.sqrt(LATENT) * np.concatenate([np.eye(LATENT), -np.eye(LATENT)])
    losses = [
        task.loss(
            params, (images, targets, tf.broadcast_to(tf.cast(p, "float32"), noise.shape)), setting
        )
        for p in points
    ]
    return np.mean(losses), targets.numpy().reshape(-1, PIXELS).astype(np.float64)


def negative_log_likelihood(x, params):
    """Of the linear-Gaussian model, for each pixel."""
    decoder, bias = (p[0].numpy().astype(np.float64) for p in params[2:])
    covariance = np.eye(PIXELS) + decoder.T @ decoder
    squares = np.sum((x - bias) @ np.linalg.inv(covariance) * (x - bias), axis=1)
    total = 0.5 * (squares.mean() + np.linalg.slogdet(covariance)[1] + PIXELS * LOG_2PI)
    return total / PIXELS


def test_with_the_best_encoder_the_bound_is_the_likelihood():
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.standard_normal((PIXELS, LATENT)))
    scale = np.array([1.5, 0.4])
    # With orthogonal filters the exact posterior is one that the encoder can express.
    decoder, best = (basis * scale).T, -np.log1p(scale**2)
    for log_variance, slack in ((best, 0.0), (best + 0.5, 1e-3)):
        task, params = linear_vae(decoder, log_variance, rng)
        loss, x = expected_loss(task, params)
        gap = loss + 0.5 * LOG_2PI - negative_log_likelihood(x, params)
        assert slack - 1e-5 < gap < (1e-5 if not slack else np.inf)


def test_it_is_a_bound_for_any_encoder():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        decoder = rng.standard_normal((LATENT, PIXELS))
        task, params = linear_vae(decoder, rng.standard_normal(LATENT), rng)
        loss, x = expected_loss(task, params)
        assert loss + 0.5 * LOG_2PI > negative_log_likelihood(x, params)


def test_beta_weighs_the_divergence():
    rng = np.random.default_rng(0)
    log_variance = np.array([0.3, -0.7])
    task, params = linear_vae(rng.standard_normal((LATENT, PIXELS)), log_variance, rng)
    losses = [expected_loss(task, params, beta)[0] for beta in (0.0, 1.0, 3.0)]
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


def test_the_noise_of_the_code_is_drawn_with_the_batch():
    task = VAE(random_images(), bottleneck=LATENT, batch_size=500)
    setting = task.draw(SEED, 2)
    for split in ("train", "validation"):
        first, again = (task.batch(split, SEED, 2, setting)[2].numpy() for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.std() == pytest.approx(1.0, rel=0.05)
        assert (first[0] != first[1]).all()
