"""Spectra from correlation functions without learning: maximum entropy, sparse modelling.

Both solve `G = K p + noise` for weights p >= 0 of sum 1, in float64 NumPy. K is any
kernel on a grid of frequencies, p the integral of the spectrum over each of its cells.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array
from lopt_keras.validation import check_number
from meta.continuation.problem import Problem

CHOICES = ("evidence", "discrepancy")
"""How `maximum_entropy` may choose alpha, the strength of its regularisation, by itself."""

_NEWTON_STEPS = 100
_ADMM_STEPS = 500
_STRENGTHS = 10.0 ** np.arange(5.0, -2.5, -0.5)
_LOWEST_ALPHA = -2.0


class Answer(NamedTuple):
    """A spectrum, and how it fits.

    Attributes:
        weights: `[W]`, non-negative, of sum 1.
        chi2: mean of `((K p - G) / noise)^2`.
        regularisation: the strength at which the weights were found; infinite where the
            default model already fits.
    """

    weights: np.ndarray
    chi2: float
    regularisation: float


def maximum_entropy(
    kernel: Array,
    correlation: Array,
    noise: Any,
    default: Array | None = None,
    choice: str | float = "evidence",
    target: float = 1.0,
) -> Answer:
    """The spectrum of largest entropy among those that fit the data as well as they deserve.

    Minimises `N chi2 / 2 + alpha sum p log(p / m)` over p of sum 1, m the default model. How
    alpha is chosen:

    - "evidence": the most probable one, of 4 to a decade, given the data. With a poor
      default model, it follows very precise data too closely.
    - "discrepancy": the one for which chi2, the mean over the N values, is `target`. If
      already the default model fits as well, it is the answer. If no alpha lets p fit so
      well, or nearly so, what counts instead of `target` is a tenth more than the best
      chi2: noise may be larger than it should.
    - a positive number: alpha itself.

    The dual is minimised by Newton's method: it is smooth and convex and has a variable
    for each singular value of K that matters, and p is positive by construction.

    Args:
        kernel: K, `[N, W]`.
        correlation: G, `[N]`.
        noise: of G: its standard deviation, a number or `[N]`, or its covariance, `[N, N]`.
        default: m, `[W]`, positive. Flat by default. It is normalised to sum 1.
        choice: "evidence", "discrepancy" or alpha.
        target: of chi2, for "discrepancy"; below 1 to follow the data more closely.

    Returns:
        `Answer`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Gull 1989 and Skilling 1989 for the evidence (the "classic" method), Gull and
    Daniell 1978 for the discrepancy; Jarrell and Gubernatis 1996 for the use on spectra.
    The dual is worked out here.
    """
    data = Problem.of(kernel, correlation, noise)
    check_number("target", target, low_open=True)
    if isinstance(choice, str) and choice not in CHOICES:
        raise ValueError(
            f"`choice` must be one of {CHOICES}, or a number. Received: choice={choice!r}"
        )
    lowest = _LOWEST_ALPHA
    if not isinstance(choice, str):
        check_number("choice", choice, low_open=True)
        lowest = np.log10(choice)
    log_default = np.log(_checked_default(default, data.a.shape[1]))
    highest = np.log10(100.0 * data.size * (1.0 + data.chi2(_normalised(log_default))))
    alphas = 10.0 ** np.append(np.arange(max(highest, lowest + 1.0), lowest, -0.25), lowest)
    fits, tilt = [], np.zeros(len(data.b))
    for alpha in alphas:
        tilt, p = _entropic_fit(data, alpha, log_default, tilt)
        fits.append((alpha, tilt, p))
    if choice == "evidence":
        alpha, _, p = max(fits, key=lambda fit: _log_evidence(data, fit[0], fit[2], log_default))
        return Answer(p, data.chi2(p), float(alpha))
    if choice == "discrepancy":
        return _discrepant(data, log_default, fits, target)
    return Answer(p, data.chi2(p), float(choice))


def _discrepant(
    data: Problem, log_default: Array, fits: Sequence[tuple[float, Array, Array]], target: float
) -> Answer:
    """The `Answer` with chi2 as prescribed, from fits along falling alpha."""
    default = _normalised(log_default)
    if data.chi2(default) <= target:
        return Answer(default, data.chi2(default), np.inf)
    chi2 = np.array([data.chi2(p) for _, _, p in fits])
    target = max(target, 1.1 * chi2.min())
    first = int(np.argmax(chi2 <= target))
    lower = np.log(fits[first][0])
    upper, tilt = np.log(fits[max(first - 1, 0)][0]), fits[first][1]
    for _ in range(40):
        middle = 0.5 * (lower + upper)
        tilt, p = _entropic_fit(data, np.exp(middle), log_default, tilt)
        lower, upper = (middle, upper) if data.chi2(p) <= target else (lower, middle)
    return Answer(p, data.chi2(p), float(np.exp(middle)))


def sparse_modelling(kernel: Array, correlation: Array, noise: Any, target: float = 1.0) -> Answer:
    """The spectrum with the sparsest coefficients in the kernel's singular basis.

    Minimises `N chi2 / 2 + strength * |x|_1` over x with `p = V x >= 0` and `sum p = 1`, K = U
    S V' the singular value decomposition, by the alternating direction method of
    multipliers. Among strengths two to a decade, the largest is taken whose chi2 is at most
    `target`, or at most a tenth more than the best one, if that is larger.

    Args:
        kernel, correlation, noise, target: as for `maximum_entropy`.

    Returns:
        `Answer`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Otsuki et al., arXiv 1702.03056; they choose the strength by a kink of chi2
    instead.
    """
    data = Problem.of(kernel, correlation, noise)
    check_number("target", target, low_open=True)
    answers, state = [], None
    for strength in _STRENGTHS:
        p, state = _sparse_fit(data, strength, state)
        answers.append(Answer(p, data.chi2(p), float(strength)))
    target = max(target, 1.1 * min(answer.chi2 for answer in answers))
    return next(answer for answer in answers if answer.chi2 <= target)


def _checked_default(default: Any, size: int) -> Array:
    default = np.ones(size) if default is None else np.asarray(default, np.float64)
    if default.shape != (size,) or not (np.isfinite(default) & (default > 0)).all():
        raise ValueError(
            f"`default` must be {size} positive numbers, one for each column of the kernel. "
            f"Received: {default}"
        )
    return default


def _normalised(logits: Array) -> Array:
    """Softmax."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _entropic_fit(
    data: Problem, alpha: float, log_default: Array, tilt: Array
) -> tuple[Array, Array]:
    """The p that minimises `|a p - b|^2 / 2 + alpha sum p log(p / m)`, of sum 1.

    p is `m exp(-a' t)`, normalised, for the tilt t that minimises
    `alpha |t|^2 / 2 + t b + log sum m exp(-a' t)`; then `alpha t = a p - b`.

    Returns:
        t, `[R]`, and p.
    """
    a, b = data.a, data.b

    def objective(t: Array) -> float:
        logits = log_default - t @ a
        top = logits.max()
        return 0.5 * alpha * t @ t + t @ b + top + np.log(np.exp(logits - top).sum())

    value = objective(tilt)
    for _ in range(_NEWTON_STEPS):
        p = _normalised(log_default - tilt @ a)
        fitted = a @ p
        gradient = alpha * tilt + b - fitted
        hessian = (a * p) @ a.T - np.outer(fitted, fitted)
        hessian[np.diag_indices_from(hessian)] += alpha
        step = np.linalg.solve(hessian, -gradient)
        decrease = -gradient @ step
        if decrease < 1e-13 * (1.0 + abs(value)):
            break
        size = 1.0
        while (new_value := objective(tilt + size * step)) > value - 0.25 * size * decrease:
            size *= 0.5
            if size < 1e-10:
                return tilt, p
        tilt, value = tilt + size * step, new_value
    return tilt, _normalised(log_default - tilt @ a)


def _log_evidence(data: Problem, alpha: float, p: Array, log_default: Array) -> float:
    """Of alpha and the default model, but for a constant; the prior of alpha is `1 / alpha`.

    The Gaussian approximation around p, the metric of the entropy being `1 / p`.
    """
    root = data.a * np.sqrt(p)
    curvature = np.linalg.eigvalsh(root @ root.T)
    occupied = p > 0
    divergence = np.sum(
        p[occupied] * (np.log(p[occupied]) - _log_normalised(log_default)[occupied])
    )
    fit = 0.5 * data.size * data.chi2(p) + alpha * divergence
    return -0.5 * np.sum(np.log1p(np.maximum(curvature, 0.0) / alpha)) - fit


def _log_normalised(logits: Array) -> Array:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def _sparse_fit(data: Problem, strength: float, state: Any) -> tuple[Array, Any]:
    """The minimum for one strength: p, and the state from which the next one may start.

    The penalty of the method follows the residuals (Boyd et al. 2011, section 3.4.1).

    Args:
        data: `Problem`.
        strength: of the absolute values.
        state: as returned, or None.
    """
    s, v, b = data.singular_values, data.v, data.b
    size, rank = v.shape
    sums = v.sum(axis=0)
    if state is None:
        state = np.zeros(rank + size), np.zeros(rank + size), 1.0 + s[0]
    # The coefficients, to be sparse, and the weights, to be positive, in one vector.
    split, dual, penalty = state
    for i in range(_ADMM_STEPS):
        wanted = split - dual / penalty
        inverse = 1.0 / (np.square(s) + 2.0 * penalty)
        free = inverse * (s * b + penalty * (wanted[:rank] + wanted[rank:] @ v))
        x = free + inverse * sums * (1.0 - sums @ free) / (sums @ (inverse * sums))
        both = np.concatenate([x, v @ x])
        shifted = both + dual / penalty
        shrunk = np.maximum(np.abs(shifted[:rank]) - strength / penalty, 0.0)
        moved = -split
        split = np.concatenate([np.sign(shifted[:rank]) * shrunk, np.maximum(shifted[rank:], 0.0)])
        moved += split
        dual = dual + penalty * (both - split)
        gap, drift = np.linalg.norm(both - split), penalty * np.linalg.norm(moved)
        if gap < 1e-6 and drift < 1e-6 * (1.0 + np.linalg.norm(dual)):
            break
        if i % 10 == 9:
            ratio = (gap / np.linalg.norm(both)) / (drift / (1e-30 + np.linalg.norm(dual)) + 1e-30)
            penalty *= np.clip(np.sqrt(ratio), 0.5, 2.0)
    return split[rank:] / split[rank:].sum(), (split, dual, penalty)
