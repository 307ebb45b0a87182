"""The states that a rule visits: principal components, trajectories and flow."""

from typing import NamedTuple

import numpy as np

from lopt_keras.types import Array
from lopt_keras.validation import check_integer
from meta.analysis.dynamics import Dynamics

_MARGIN = 0.15


class Components(NamedTuple):
    """Principal components of states.

    Attributes:
        mean: `[size]`.
        scale: `[size]`, by which deviations were divided before.
        axes: `[K, size]`, orthonormal, by explained variance.
        shares: of the variance, `[K]`.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    fractions: np.ndarray

    def project(self, states: Array) -> Array:
        """Coordinates `[..., K]` of states `[..., size]`."""
        return ((states - self.mean) / self.scale) @ self.axes.T

    def restore(self, coordinates: Array) -> Array:
        """States `[..., size]` in the plane of the first axes, from coordinates `[..., k]`."""
        axes = self.axes[: coordinates.shape[-1]]
        return self.mean + self.scale * (coordinates @ axes)

    @property
    def dimension(self) -> float:
        """How many dimensions the states fill: `1 / sum of squared shares`."""
        return float(1.0 / np.sum(np.square(self.fractions)))


class Flow(NamedTuple):
    """Where the map takes states in the plane of the first two components.

    Attributes:
        first, second: coordinates of the grid, `[N, N]`.
        first_speed, second_speed: of `F(h) - h` there, `[N, N]`.
    """

    first: np.ndarray
    second: np.ndarray
    first_speed: np.ndarray
    second_speed: np.ndarray


def components(states: Array, num: int = 3, standardised: bool = False) -> Components:
    """The `Components` of states.

    Args:
        states: `[..., size]`, finite.
        num: K, at most.
        standardised: whether each entry is divided by its standard deviation first, as where
            entries are accumulators of different units.

    Raises:
        ValueError: if the states are not finite, fewer than two, or all the same.
    """
    check_integer("num", num, low=1)
    flat = np.asarray(states, "float64").reshape(-1, np.shape(states)[-1])
    if len(flat) < 2 or not np.isfinite(flat).all():
        raise ValueError(f"`states` must be two or more, and finite. Received: {flat.shape}")
    mean, spread = flat.mean(axis=0), flat.std(axis=0)
    if not spread.max() > 0:
        raise ValueError("`states` must differ. Received: the same state everywhere.")
    # What does not move has no unit.
    moving = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    scale = np.where(moving, spread, 1.0) if standardised else np.ones_like(spread)
    _, values, axes = np.linalg.svd(
        np.where(moving, (flat - mean) / scale, 0.0), full_matrices=False
    )
    fractions = np.square(values) / np.square(values).sum()
    return Components(mean, scale, axes[:num], fractions[:num])


def flow(
    dynamics: Dynamics, found: Components, states: Array, gradient: float = 0.0, num: int = 12
) -> Flow:
    """The `Flow` of a rule in the plane of two components.

    Args:
        dynamics: `Dynamics`.
        found: `Components`, with two or more axes.
        states: `[..., size]`, which the grid covers.
        gradient: g, a number.
        num: N, points along each axis.
    """
    seen = found.project(states)[..., :2].reshape(-1, 2)
    low, high = seen.min(axis=0), seen.max(axis=0)
    margin = _MARGIN * np.maximum(high - low, 1e-6)
    axes = [np.linspace(low[i] - margin[i], high[i] + margin[i], num) for i in range(2)]
    first, second = np.meshgrid(*axes)
    grid = found.restore(np.stack([first.ravel(), second.ravel()], axis=1))
    new, _ = dynamics(grid, gradient)
    moved = found.project(new)[:, :2] - found.project(grid)[:, :2]
    return Flow(first, second, *(moved[:, i].reshape(num, num) for i in range(2)))
