"""Exact meta-gradients of SGD with momentum on `Quadratic`, in float64.

With z = (x, m) and r the learning rate, a step is linear, z <- M z, and a loss is a
quadratic form in z. The expected loss of a segment is then linear in `E[z z^T]` at
its start, and expectations over perturbations of theta are Gauss-Hermite sums.
"""

import functools
import itertools

import numpy as np
import tensorflow as tf
from problems import Quadratic

from lopt_keras import rules
from meta import random

RULE = rules.SGD(learning_rate=0.1, momentum=0.5)
STDDEV = 0.2
NAMES = ("log_learning_rate", "log_one_minus_momentum")

_NODES = 40
_START = np.array([1.0, 0.0, 0.0, 0.0])  # z z^T of (1, 0), flattened.


def outer_loss(log_learning_rate, log_one_minus_momentum, length, tail=None):
    """Mean loss over the last `tail` steps of an unroll (all), by the recursion itself."""
    learning_rate, momentum = np.exp(log_learning_rate), 1 - np.exp(log_one_minus_momentum)
    tail = length if tail is None else tail
    x, m, total = 1.0, 0.0, 0.0
    for i in range(length):
        if i >= length - tail:
            total = total + 0.5 * Quadratic.curvature * x**2
        m = momentum * m - learning_rate * Quadratic.curvature * x
        x = x + m
    return total / tail


def smoothed_gradient(length, stddev=STDDEV, tail=None):
    """Of `E_e[outer_loss(theta + e)]`: `[2]`, as `E_e[loss e] / stddev^2`."""
    e, weights = _quadrature(stddev)
    theta = np.array([RULE.init_theta()[name] for name in NAMES], "float64")
    losses = outer_loss(*(theta[:, None] + e), length, tail)
    return (weights * losses * e).sum(axis=1) / stddev**2


def segment_gradients(length, horizon, stddev=STDDEV):
    """Where every segment of `length` steps has perturbations of its own.

    Returns:
        Two gradients `[2]` of the smoothed mean loss over `horizon` steps: the whole
        one, and the truncated one, to which the state that a segment starts from
        is a constant.
    """
    loss, transition, loss_slopes, transition_slopes = _smoothed_segment(length, stddev)
    count = horizon // length
    moments = [_START]
    for _ in range(count - 1):
        moments.append(transition @ moments[-1])
    truncated = sum(loss_slopes @ s for s in moments) / count
    whole = truncated.copy()
    for k, j in itertools.combinations(range(count), 2):
        # Segment k changes what segment j > k starts from.
        after = np.linalg.matrix_power(transition, j - k - 1)
        whole += [loss @ after @ slope @ moments[k] / count for slope in transition_slopes]
    return whole, truncated


def sample(estimator, theta, num, skip=0):
    """Gradients `[num, 2]` of successive estimates."""
    theta = {name: tf.constant(value) for name, value in theta.items()}
    gradients = _sample(estimator, theta, estimator.init_state(theta, random.seed(0)), num + skip)
    return gradients.numpy()[skip:]


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _sample(estimator, theta, state, num):
    def step(i, state, gradients):
        estimate = estimator.estimate(theta, state, random.fold_in(random.seed(1), i))
        gradient = tf.stack([estimate.gradient[name] for name in NAMES])
        return i + 1, estimate.state, gradients.write(i, gradient)

    gradients = tf.TensorArray("float32", num, element_shape=[2])
    return tf.while_loop(lambda i, *_: i < num, step, (0, state, gradients))[2].stack()


def assert_unbiased(samples, exact):
    """Within 3 standard errors, small enough to notice a factor of 1.05."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert (3 * error < 0.05 * np.abs(exact)).all(), (error, exact)
    assert (np.abs(samples.mean(axis=0) - exact) < 3 * error).all(), (samples.mean(0), exact, error)


def _quadrature(stddev):
    """Points e `[2, N]` and weights `[N]` of the perturbations."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    e = stddev * np.stack(np.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1)
    return e, np.outer(weights, weights).ravel()


def _smoothed_segment(length, stddev):
    """Smoothed loss `[4]`, transition `[4, 4]` of `E[z z^T]`, and their gradients `[2, ...]`."""
    e, weights = _quadrature(stddev)
    theta = np.array([RULE.init_theta()[name] for name in NAMES], "float64")
    learning_rate, one_minus_momentum = np.exp(theta[:, None] + e)
    pull, momentum = learning_rate * Quadratic.curvature, 1 - one_minus_momentum
    step = np.stack([np.stack([1 - pull, momentum]), np.stack([-pull, momentum])])
    step = step.transpose(2, 0, 1)
    power, losses = np.broadcast_to(np.eye(2), step.shape), 0.0
    for _ in range(length):
        position = power[:, 0]
        square = np.einsum("ni,nj->nij", position, position).reshape(-1, 4)
        losses = losses + 0.5 * Quadratic.curvature * square / length
        power = step @ power
    transitions = np.einsum("nik,njl->nijkl", power, power).reshape(-1, 4, 4)
    results = [np.einsum("n,n...->...", weights, x) for x in (losses, transitions)]
    slopes = weights * e / stddev**2
    return *results, *[np.einsum("dn,n...->d...", slopes, x) for x in (losses, transitions)]
