import numpy as np
import pytest
from keras import ops

from lopt_keras import orthogonalization


def matrices(rows, columns, seed=0):
    x = np.random.default_rng(seed).standard_normal((3, rows, columns)).astype("float32")
    return ops.convert_to_tensor(x)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8)])
def test_singular_values_come_near_one(shape):
    x = np.asarray(orthogonalization.orthogonalized(matrices(*shape)))
    values = np.linalg.svd(x, compute_uv=False)
    # The quintic of Muon does not converge: it brings them between 0.7 and 1.2.
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (1, 5), (32, 128)])
def test_small_products_first_are_the_same_iterations(shape):
    x = matrices(*shape)
    np.testing.assert_allclose(
        orthogonalization.orthogonalized_wide(x),
        orthogonalization.orthogonalized(x),
        atol=2e-4,
    )


def test_singular_vectors_stay():
    x = np.asarray(matrices(6, 20))
    left, _, right = np.linalg.svd(x, full_matrices=False)
    turned = np.swapaxes(left, 1, 2) @ np.asarray(orthogonalization.orthogonalized_wide(x))
    turned = turned @ np.swapaxes(right, 1, 2)
    off_diagonal = turned - np.stack([np.diag(np.diag(t)) for t in turned])
    np.testing.assert_allclose(off_diagonal, 0.0, atol=1e-3)


@pytest.mark.parametrize("function", ["orthogonalized", "orthogonalized_wide"])
def test_zero_and_low_rank_stay_finite(function):
    x = np.zeros((2, 4, 16), "float32")
    x[1] = np.outer(np.ones(4), np.arange(16))
    y = np.asarray(getattr(orthogonalization, function)(ops.convert_to_tensor(x)))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[0], 0.0)
    assert np.linalg.matrix_rank(y[1], tol=1e-2) == 1
