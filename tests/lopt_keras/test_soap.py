"""SOAP against an independent one in NumPy, written from the paper's algorithm 3."""

import numpy as np
import pytest
from keras import ops

from lopt_keras import rules

BETA_1, BETA_2, SHAMPOO, EPSILON, RATE = 0.9, 0.95, 0.8, 1e-8, 0.01
STEPS, EVERY = 12, 4


class NumpySOAP:
    """For one matrix, in float64."""

    def __init__(self, shape, sides=("left", "right")):
        self.m, self.v, self.t = np.zeros(shape), np.zeros(shape), 0
        self.sides = sides
        self.l, self.r = np.zeros((shape[0],) * 2), np.zeros((shape[1],) * 2)
        self.ql, self.qr = np.eye(shape[0]), np.eye(shape[1])

    def step(self, g):
        update = self.adam(g) if self.t else np.zeros_like(g)
        self.l = SHAMPOO * self.l + (1 - SHAMPOO) * g @ g.T
        self.r = SHAMPOO * self.r + (1 - SHAMPOO) * g.T @ g
        if self.t == 0:
            self.ql, self.qr = np.linalg.eigh(self.l)[1], np.linalg.eigh(self.r)[1]
        elif self.t % EVERY == 0:
            self.ql = np.linalg.qr(self.l @ self.ql)[0]
            self.qr = np.linalg.qr(self.r @ self.qr)[0]
        self.t += 1
        return update

    def adam(self, g):
        ql = self.ql if "left" in self.sides else np.eye(len(g))
        qr = self.qr if "right" in self.sides else np.eye(g.shape[1])
        self.m = BETA_1 * self.m + (1 - BETA_1) * g
        self.v = BETA_2 * self.v + (1 - BETA_2) * (ql.T @ g @ qr) ** 2
        m = ql.T @ self.m @ qr / (1 - BETA_1**self.t)
        v = self.v / (1 - BETA_2**self.t)
        return -RATE * ql @ (m / (np.sqrt(v) + EPSILON)) @ qr.T


def rule(**kwargs):
    return rules.SOAP(RATE, BETA_1, BETA_2, EPSILON, SHAMPOO, EVERY, **kwargs)


def gradients(shape):
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((shape[0], shape[0]))
    return [(mixing @ rng.standard_normal(shape)).astype("float32") for _ in range(STEPS)]


def run(rule, shape, grads):
    theta = {name: ops.convert_to_tensor(x[None]) for name, x in rule.init_theta().items()}
    param = ops.zeros((1, *shape), "float32")
    state, updates = rule.init_state(theta, [param]), []
    for step, grad in enumerate(grads):
        signals = rules.Signals.silent(ops.convert_to_tensor([step]))
        grad = ops.convert_to_tensor(grad.reshape(1, *shape))
        (update,), state = rule.update(theta, state, [grad], [param], signals)
        updates.append(np.asarray(update)[0])
    return updates


def test_matrix_as_in_the_paper():
    # Square: the first gradient of a wide matrix leaves some eigenvectors open.
    reference = NumpySOAP((6, 6))
    grads = gradients((6, 6))
    for ours, grad in zip(run(rule(), (6, 6), grads), grads, strict=True):
        # The small eigenvalues of float32 are less exact than its products.
        np.testing.assert_allclose(ours, reference.step(grad.astype("float64")), atol=2e-4)


def test_a_long_side_is_not_turned():
    reference = NumpySOAP((4, 6), sides=("left",))
    grads = gradients((4, 6))
    for ours, grad in zip(run(rule(max_side=5), (4, 6), grads), grads, strict=True):
        np.testing.assert_allclose(ours, reference.step(grad.astype("float64")), atol=2e-4)


def test_filters_are_one_matrix():
    grads = gradients((12, 5))
    flat, filters = (run(rule(), shape, grads) for shape in ((12, 5), (2, 2, 3, 5)))
    for a, b in zip(flat, filters, strict=True):
        np.testing.assert_allclose(a, b.reshape(12, 5), atol=1e-6)


def test_vectors_are_adams():
    grads = gradients((7, 1))
    adam = rules.Adam(RATE, BETA_1, BETA_2, EPSILON)
    for a, b in zip(run(rule(), (7,), grads), run(adam, (7,), grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "kwargs", [{"shampoo_beta": 1.0}, {"refresh_every": 0}, {"max_side": 0}, {"learning_rate": -1}]
)
def test_refuses_what_is_out_of_range(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        rules.SOAP(**kwargs)
