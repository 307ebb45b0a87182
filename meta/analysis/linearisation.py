"""A rule near a fixed point: momenta, timescales and effective learning rates."""

from typing import NamedTuple

import numpy as np

from lopt_keras.types import Array
from lopt_keras.validation import check_integer, check_number
from meta.analysis.dynamics import Dynamics

_INSTANT = 1e-4
_SAME = 1e-3
_NEGLIGIBLE, _ROUNDING = 1e-6, 1e-9


class Linearisation(NamedTuple):
    """A rule as a sum of momenta: `u_t = -sum_i alpha_i sum_k lambda_i^k g_(t-k)`.

    The modes are ordered by what they add to the rate of a constant gradient, the largest first.
    Those with the same eigenvalue are one; those of eigenvalue 0, and what the gradient moves at
    once beyond the momenta, are the mode with `momenta` 0.

    Attributes:
        eigenvalues: lambda, `[M]` complex.
        rates: alpha, `[M]` complex: effective learning rates. A pair of complex eigenvalues has
            a pair of complex rates.
        spectrum: all eigenvalues of dF/dh, `[size]` complex, by size.
        right, left: the eigenvectors, as columns `[size, size]` and rows `[size, size]`.
        impulse: the response of the step to a gradient of 1 in one step, computed without
            eigenvectors, `[K]`.
        error: of the sum of momenta against that, relative to its largest entry. Where the
            Jacobian has no basis of eigenvectors, it is large.
    """

    eigenvalues: np.ndarray
    rates: np.ndarray
    spectrum: np.ndarray
    right: np.ndarray
    left: np.ndarray
    impulse: np.ndarray
    error: float

    @property
    def momenta(self) -> Array:
        """`|lambda_i|`, `[M]`."""
        return np.abs(self.eigenvalues)

    @property
    def timescales(self) -> Array:
        """`-1 / log |lambda_i|`, in steps: after as many, a mode has fallen to 1 / e; `[M]`."""
        with np.errstate(divide="ignore"):
            return np.where(self.momenta > 0, -1.0 / np.log(self.momenta), 0.0)

    @property
    def total_rates(self) -> Array:
        """What each mode adds to the step of a constant gradient: `alpha / (1 - lambda)`, `[M]`."""
        return self.rates / (1.0 - self.eigenvalues)

    @property
    def rate(self) -> float:
        """The learning rate that a constant gradient sees in the end: minus the step over it."""
        return float(np.real(np.sum(self.total_rates)))

    @property
    def momentum(self) -> float:
        """The decay of one momentum with the same mean age of gradients in the step.

        The mean age of a gradient in a momentum beta is `beta / (1 - beta)`.
        """
        ages = self.total_rates * self.eigenvalues / (1.0 - self.eigenvalues)
        age = float(np.real(np.sum(ages))) / self.rate
        return age / (1.0 + age)


def linearise(
    dynamics: Dynamics, state: Array, gradient: float = 0.0, length: int = 100
) -> Linearisation:
    """Linearises a rule at a state, which should be a fixed point.

    Args:
        dynamics: `Dynamics`.
        state: `[size]`.
        gradient: g, a number.
        length: K, of the response to an impulse.

    Returns:
        `Linearisation`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected; or if the
            rule has no derivative there.

    Source: Maheswaranathan et al., arXiv 2011.02159, section 3.1: with dF/dh = R diag(lambda) L,
    `beta_i = |lambda_i|` and `alpha_i = -(w^T r_i)(l_i^T dF/dg)`. There the step is `w^T h` of
    the new state; here it is any function of the old state and the gradient.
    """
    check_integer("length", length, low=2)
    found = dynamics.jacobians(np.asarray(state)[None], gradient)
    transition, drive, readout, direct = (x[0].astype("float64") for x in found)
    if not all(np.isfinite(x).all() for x in (transition, drive, readout, direct)):
        raise ValueError(
            f"{dynamics.subject.name} has no finite derivative at this state and the gradient "
            f"{gradient}."
        )
    eigenvalues, right = np.linalg.eig(transition)
    order = np.argsort(-np.abs(eigenvalues), kind="stable")
    eigenvalues, right = eigenvalues[order].astype(complex), right[:, order]
    left = np.linalg.pinv(right)
    impulse = _impulse(transition, drive, readout, direct, length)
    # What a gradient adds to the step k steps later is minus this times lambda^(k - 1).
    weights = -(readout @ right) * (left @ drive)
    lasting = np.abs(eigenvalues) > _INSTANT
    rates = np.where(lasting, weights / np.where(lasting, eigenvalues, 1.0), 0.0)
    rates = np.append(rates, -direct - rates.sum())
    modes, rates = _merged(np.append(np.where(lasting, eigenvalues, 0.0), 0.0), rates)
    powers = modes[None] ** np.arange(length)[:, None]
    largest = np.abs(impulse).max()
    error = np.abs(-(powers @ rates) - impulse).max() / max(largest, 1e-30)
    return Linearisation(modes, rates, eigenvalues, right, left, impulse, float(error))


def optimal_momentum(lowest: float, highest: float) -> tuple[float, float]:
    """The rate and the momentum that are best on a quadratic, of all constant ones.

    Args:
        lowest, highest: eigenvalues of its Hessian, positive.

    Returns:
        `(rate, momentum)`: `4 / (sqrt a + sqrt b)^2` and
        `((sqrt b - sqrt a) / (sqrt b + sqrt a))^2`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Polyak, USSR Computational Mathematics and Mathematical Physics 4 (1964).
    """
    check_number("lowest", lowest, low_open=True)
    check_number("highest", highest, low=lowest)
    a, b = np.sqrt(lowest), np.sqrt(highest)
    return 4.0 / (a + b) ** 2, ((b - a) / (b + a)) ** 2


def _impulse(transition: Array, drive: Array, readout: Array, direct: float, length: int) -> Array:
    response, state = [direct], drive
    for _ in range(length - 1):
        response.append(readout @ state)
        state = transition @ state
    return np.asarray(response, "float64")


def _merged(eigenvalues: Array, rates: Array) -> tuple[Array, Array]:
    """Modes of the same eigenvalue as one, without negligible ones, the most important first."""
    found: list[complex] = []
    totals: list[complex] = []
    for value, rate in zip(eigenvalues, rates, strict=True):
        for i, mode in enumerate(found):
            if abs(value - mode) <= _SAME * abs(1.0 - mode) + 1e-9:
                totals[i] += rate
                break
        else:
            found.append(value)
            totals.append(rate)
    modes, sums = np.asarray(found), np.asarray(totals)
    # What stands still, with eigenvalue 1, and does not move the step.
    moving = np.abs(sums) > _ROUNDING * np.abs(sums).max()
    modes, sums = modes[moving], sums[moving]
    with np.errstate(divide="ignore"):
        weight = np.abs(sums / (1.0 - modes))
    kept = weight > _NEGLIGIBLE * weight[np.isfinite(weight)].max(initial=0.0)
    order = np.argsort(-weight[kept], kind="stable")
    return modes[kept][order], sums[kept][order]
