"""A noisy linear inverse problem in units of its noise, in the singular basis of its kernel."""

import functools
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array

# A spectrum of integral 1 changes the data by this, in units of the noise, at most.
_INVISIBLE = 1e-4


class Basis(NamedTuple):
    """A kernel in units of the noise: `L^-1 K = U diag(s) V'`, `L L'` the noise's covariance.

    Attributes:
        singular_values: s, `[R]`, those that matter, falling.
        v: V, `[W, R]`.
        project: `U' L^-1`, `[R, T]`: takes data to coefficients, whose noise is white, of
            variance 1.
        whiten: `L^-1`, `[T, T]`.
    """

    singular_values: np.ndarray
    v: np.ndarray
    project: np.ndarray
    whiten: np.ndarray

    @classmethod
    def of(cls, kernel: Array, noise: Any) -> "Basis":
        """The basis.

        Args:
            kernel: K, `[T, W]`, finite.
            noise: of the data: standard deviation, a positive number, or `[T]`; or their
                covariance, `[T, T]`.

        Raises:
            TypeError, ValueError: naming the argument, what was received and what is expected.
        """
        kernel = _checked_kernel(kernel)
        whiten = _whitening(noise, len(kernel))
        return _decompose(kernel.tobytes(), whiten.tobytes(), len(kernel))


# Spectra come one by one, and mostly with the kernel of the one before.
@functools.lru_cache(maxsize=8)
def _decompose(kernel: bytes, whiten: bytes, rows: int) -> Basis:
    """The `Basis` from the bytes of K and of `L^-1`, float64, both of so many rows."""
    k, w = (np.frombuffer(x).reshape(rows, -1) for x in (kernel, whiten))
    u, s, vt = np.linalg.svd(w @ k, full_matrices=False)
    seen = s > _INVISIBLE
    u, s, vt = u[:, seen], s[seen], vt[seen]
    # Of the two signs of a pair of singular vectors always the same, so that networks may
    # read coefficients.
    sign = np.where(vt @ np.linspace(1.0, 2.0, vt.shape[1]) < 0.0, -1.0, 1.0)
    basis = Basis(s, sign * vt.T, sign[:, None] * (u.T @ w), w)
    for array in basis:
        array.flags.writeable = False
    return basis


class Problem(NamedTuple):
    """One measurement: find p >= 0 of sum 1 from `G = K p + noise`.

    Attributes:
        singular_values: `[R]`, as of `Basis`.
        v: `[W, R]`.
        b: `[R]`, the data's coefficients.
        beyond: what no spectrum can fit: the sum of squares of the rest of the data.
        size: T.
    """

    singular_values: np.ndarray
    v: np.ndarray
    b: np.ndarray
    beyond: float
    size: int

    @classmethod
    def of(cls, kernel: Array, correlation: Array, noise: Any) -> "Problem":
        """The problem of one measurement; arguments as for `all_of`, correlation is `[T]`."""
        return cls.all_of(kernel, np.asarray(correlation, np.float64)[None], noise)[0]

    @classmethod
    def all_of(cls, kernel: Array, correlations: Array, noise: Any) -> list["Problem"]:
        """The problems of measurements with the same kernel and noise.

        Args:
            kernel, noise: as for `Basis.of`.
            correlations: G, `[N, T]`, finite.

        Returns:
            List of `Problem`.

        Raises:
            TypeError, ValueError: naming the argument, what was received and what is expected.
        """
        basis = Basis.of(kernel, noise)
        correlations = np.asarray(correlations, np.float64)
        size = len(basis.whiten)
        if correlations.shape[1:] != (size,) or not np.isfinite(correlations).all():
            raise ValueError(
                f"`correlation` must be {size} finite numbers, one for each row of the kernel. "
                f"Received: {_described(correlations)}"
            )
        b = correlations @ basis.project.T
        total = np.sum(np.square(correlations @ basis.whiten.T), axis=1)
        beyond = np.maximum(total - np.sum(np.square(b), axis=1), 0.0)
        return [
            cls(basis.singular_values, basis.v, x, float(y), size)
            for x, y in zip(b, beyond, strict=True)
        ]

    @property
    def a(self) -> Array:
        """K in the basis: `[R, W]`."""
        return self.singular_values[:, None] * self.v.T

    def chi2(self, p: Array) -> float:
        """Mean over the data of the squared misfit, in units of the noise."""
        misfit = np.sum(np.square(self.singular_values * (p @ self.v) - self.b))
        return float(misfit + self.beyond) / self.size


def _checked_kernel(kernel: Any) -> Array:
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 2 or not np.isfinite(kernel).all():
        raise ValueError(f"`kernel` must be a finite matrix. Received: {_described(kernel)}")
    return kernel


def _whitening(noise: Any, size: int) -> Array:
    """`L^-1` for a standard deviation, standard deviations, or a covariance."""
    noise = np.asarray(noise)
    if noise.dtype.kind not in "iuf":
        raise TypeError(f"`noise` must be numbers. Received: {noise!r:.80}")
    noise = noise.astype(np.float64)
    if noise.shape not in ((), (size,), (size, size)):
        raise ValueError(
            f"`noise` must be a number, {size} of them or a covariance of shape "
            f"({size}, {size}). Received: {_described(noise)}"
        )
    if not np.isfinite(noise).all() or (noise.ndim < 2 and np.min(noise) <= 0.0):
        raise ValueError(
            f"`noise` must be positive and finite: standard deviations. "
            f"Received: {_described(noise)}"
        )
    if noise.ndim < 2:
        return np.diag(np.broadcast_to(1.0 / noise, size))
    if not np.allclose(noise, noise.T, rtol=1e-6, atol=0.0):
        raise ValueError("`noise` as a covariance must be symmetric. Received one that is not.")
    try:
        return np.linalg.inv(np.linalg.cholesky(noise))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"`noise` as a covariance must be positive definite. Received one that is not: {error}."
            " A covariance estimated from fewer samples than times is not: use more samples, or "
            "standard errors."
        ) from error


def _described(array: Array) -> str:
    if array.ndim == 0:
        return repr(array.item())
    bad = "" if np.isfinite(array).all() else ", not all finite"
    return f"an array of shape {array.shape}{bad}, from {array.min()} to {array.max()}"
