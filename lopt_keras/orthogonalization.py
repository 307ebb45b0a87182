"""Matrices with all singular values near 1, by Newton-Schulz iterations.

Reference:
    Jordan et al., https://kellerjordan.github.io/posts/muon.
"""

from keras import ops

from lopt_keras import reductions
from lopt_keras.types import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalized(x: Tensor) -> Tensor:
    """Five Newton-Schulz iterations on matrices, `[..., rows, columns]`."""
    tall = x.shape[-2] is not None and x.shape[-2] > x.shape[-1]
    x = ops.swapaxes(x, -2, -1) if tall else x
    x = _normalized(x)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = _gram(x)
        x = a * x + ops.matmul(b * gram + c * ops.matmul(gram, gram), x)
    return ops.swapaxes(x, -2, -1) if tall else x


def orthogonalized_wide(x: Tensor) -> Tensor:
    """As `orthogonalized`, for matrices with far more columns than rows.

    Each iteration multiplies from the left by a polynomial of the Gram matrix. These
    polynomials commute. So the small square matrices are multiplied first, and the wide
    matrix is read twice instead of ten times.
    """
    x = _normalized(x)
    gram = _gram(x)
    a, b, c = _COEFFICIENTS
    scaled_identity = a * ops.eye(x.shape[-2])
    product = None
    for step in range(_STEPS):
        factor = scaled_identity + b * gram + c * ops.matmul(gram, gram)
        product = factor if product is None else ops.matmul(factor, product)
        if step < _STEPS - 1:
            gram = ops.matmul(ops.matmul(factor, gram), factor)
    return ops.matmul(product, x)


def _gram(x: Tensor) -> Tensor:
    """`x x^T`. As one product: XLA would write the transposed matrix to memory first."""
    return ops.einsum("...rc,...sc->...rs", x, x)


def _normalized(x: Tensor) -> Tensor:
    rank = len(x.shape)
    norm = ops.sqrt(reductions.total(ops.square(x), (rank - 2, rank - 1)) + 1e-30)
    return x / (norm + 1e-8)
