import itertools

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from lopt_keras import fusion, reductions, rules

RULES = [
    rules.FactoredMLP(),
    rules.MLP(hidden_size=8),
    rules.NormalizedMLP(orthogonalize=False),
    rules.NormalizedMLP(orthogonalize=False, flatten_filters=True),
]


SHORT_ROWS = [(20_000, 8), (21_000, 5), (90_000, 1)]


def two_steps(rule, shape, fused):
    """The updates of two particles in their second step, and their state."""
    rng = np.random.default_rng(0)
    theta = {
        name: np.stack([value, 1.1 * value]).astype("float32")
        for name, value in rule.init_theta(seed=1).items()
    }
    param, grad = rng.standard_normal((2, 2, *shape), dtype="float32")

    def run():
        state = rule.init_state(theta, [param])
        for step in range(2):
            signals = rules.Signals.silent(tf.constant([step, step]))
            update, state = rule.update(theta, state, [grad], [param], signals)
        return update[0], state.tensors[0]

    if not fused:
        return run()
    with fusion.scope():
        return tf.function(run, jit_compile=True, autograph=False)()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", [(196, 200), (3, 3, 80, 64), (20_000,), *SHORT_ROWS], ids=str)
def test_spelled_out_networks_do_the_same(rule, shape):
    shapes = [w for name, w in rule.theta_shapes().items() if name.startswith("w")]
    with fusion.scope():
        assert fusion.is_worthwhile([np.zeros((2, *w)) for w in shapes], (2, *shape))
    (update, state), (expected, expected_state) = (
        two_steps(rule, shape, fused) for fused in (True, False)
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(update / scale, expected / scale, rtol=2e-5, atol=2e-5)
    for name, value in expected_state.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-6)


def test_spells_nothing_out_elsewhere():
    weights = [np.zeros((1, 16, 8))]
    assert not fusion.is_worthwhile(weights, (1, 512, 512))
    with fusion.scope():
        assert fusion.is_worthwhile(weights, (1, 512, 512))
        assert not fusion.is_worthwhile(weights, (1, None, 512))
        assert not fusion.is_worthwhile(weights, (1, 8, 16))
        assert fusion.is_worthwhile(weights, (1, 2**16, 10))
        # No number of rows makes whole long rows of these.
        assert not fusion.is_worthwhile(weights, (1, 10_007, 10))
        assert not fusion.is_worthwhile([np.zeros((1, 28, 128))], (1, 2048, 2048))
    assert not fusion.is_worthwhile(weights, (1, 512, 512))


@pytest.mark.parametrize("shape", [(20, 8), (12, 5), (36, 1)], ids=str)
def test_a_fold_is_a_matrix_of_longer_rows(shape):
    rng = np.random.default_rng(0)
    fold = fusion.Fold(shape)
    assert fold.rows * shape[1] >= 16
    folded = (shape[0] // fold.rows, fold.rows * shape[1])
    for own in (shape, (1, shape[1]), (shape[0], 1), (1, 1)):
        x = rng.standard_normal((2, 3, *own), dtype="float32")
        expected = np.broadcast_to(x, (2, 3, *shape)).reshape(2, 3, *folded)
        actual = np.broadcast_to(fold(ops.convert_to_tensor(x)), expected.shape)
        np.testing.assert_array_equal(actual, expected)


SHAPES = [(2, 3, 40, 50), (1, 1, 3, 3, 16, 7), (4, 1031), (2, 70_000), (3, 2, 1, 1), (2,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_totals_are_sums(shape):
    x = np.random.default_rng(0).random(shape, dtype="float32")
    for first, last in itertools.combinations(range(len(shape) + 1), 2):
        axis = tuple(range(first, last))
        total, mean = reductions.total(ops.convert_to_tensor(x), axis), reductions.mean(x, axis)
        expected = x.astype("float64").sum(axis=axis, keepdims=True)
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        np.testing.assert_allclose(mean, x.mean(axis=axis, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(reductions.total(x, ()), x)


@pytest.mark.parametrize("shape", [(40, 50), (7, 3), (70_000,), (1, 1)], ids=str)
def test_means_are_side_by_side(shape):
    rng = np.random.default_rng(0)
    arrays = [rng.random((2, count, 3, *shape), dtype="float32") for count in (1, 2)]
    axis = tuple(range(3, 3 + len(shape)))
    expected = np.concatenate([x.mean(axis=axis, keepdims=True) for x in arrays], axis=1)
    means = reductions.means([ops.convert_to_tensor(x) for x in arrays], axis)
    assert means.shape == expected.shape
    np.testing.assert_allclose(means, expected, rtol=1e-5)
