"""What training on mislabeled data learns, and how to decide nevertheless.

Labels flip independently of the features. A classifier that is trained on such labels by
maximum likelihood learns the noisy posterior, and the clean one is a known function of
it: to classify, move the threshold instead of cleaning the data.

NumPy only. Source: Gish et al., arXiv 1909.09136.
"""

from typing import Any

import numpy as np

from lopt_keras.types import Array
from lopt_keras.validation import check_integer, check_number


def noisy_posterior(posterior: Any, r0: float, r1: float) -> Array:
    """The probability that the label says 1, `(1 - r1) p + r0 (1 - p)`.

    Args:
        posterior: p, the probability that the class is 1; any shape.
        r0, r1: the probability that an example of class 0, of class 1, has the other label.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """
    _check_rates(r0, r1)
    posterior = np.asarray(posterior)
    return (1.0 - r1) * posterior + r0 * (1.0 - posterior)


def clean_posterior(posterior: Any, r0: float, r1: float) -> Array:
    """The inverse of `noisy_posterior`, clipped to [0, 1], as estimates may lie outside.

    Args:
        posterior: the probability that the label says 1; any shape.
        r0, r1: as for `noisy_posterior`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """
    _check_rates(r0, r1)
    return np.clip((np.asarray(posterior) - r0) / (1.0 - r0 - r1), 0.0, 1.0)


def threshold(r0: float, r1: float) -> float:
    """The noisy posterior above which class 1 is the more probable: `(1 - r1 + r0) / 2`.

    Args:
        r0, r1: as for `noisy_posterior`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """
    _check_rates(r0, r1)
    return (1.0 - r1 + r0) / 2.0


def transitions(r0: float, r1: float, num_classes: int = 2) -> Array:
    """The matrix T with `T[i, j]` the probability that an example of class i is labelled j.

    Class k has a wrong label with a rate on the line from r0, for the first class, to r1,
    for the last; all wrong labels are equally probable. (This line is ours.)

    Args:
        r0, r1: as for `noisy_posterior`, which this is for two classes.
        num_classes: K.

    Returns:
        `[K, K]` float64.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """
    check_integer("num_classes", num_classes, low=2)
    _check_rates(r0, r1)
    rates = np.linspace(r0, r1, num_classes)[:, None]
    wrong = rates / (num_classes - 1) * np.ones(num_classes)
    return np.where(np.eye(num_classes, dtype=bool), 1.0 - rates, wrong)


def noisy_posteriors(posteriors: Any, transitions: Any) -> Array:
    """The probabilities of the labels, `T^T p`.

    Args:
        posteriors: `[..., K]`, of the classes.
        transitions: T, `[K, K]`, as the function of that name returns it.
    """
    return np.asarray(posteriors) @ np.asarray(transitions)


def clean_posteriors(posteriors: Any, transitions: Any) -> Array:
    """The inverse of `noisy_posteriors`: not clipped, so entries of estimates may be negative.

    The largest entry is that of the most probable class.

    Args:
        posteriors: `[..., K]`, of the labels.
        transitions: T, `[K, K]`.

    Raises:
        ValueError: if the labels do not determine the classes, as T is singular.
    """
    transitions = np.asarray(transitions)
    if np.linalg.matrix_rank(transitions) < len(transitions):
        raise ValueError(f"`transitions` must not be singular. Received: {transitions.tolist()}")
    return np.asarray(posteriors) @ np.linalg.inv(transitions)


def flip_rates(
    class_prior: float, label_prior: float, r0: float | None = None, r1: float | None = None
) -> tuple[float, float]:
    """The flip rates `(r0, r1)`, from how frequent class 1 and label 1 are.

    The two frequencies are one equation, `label_prior = noisy_posterior(class_prior, r0,
    r1)`: one rate must be given, and is 0 where only the other class is mislabeled. Without
    either, the rates are taken to be equal.

    Args:
        class_prior: fraction of class 1, in (0, 1), known from elsewhere.
        label_prior: fraction of label 1, in (0, 1), as counted.
        r0, r1: at most one of the rates, if it is known.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected, or if
            no rates explain the priors.
    """
    check_number("class_prior", class_prior, high=1.0, low_open=True)
    check_number("label_prior", label_prior, high=1.0, low_open=True)
    if r0 is not None and r1 is not None:
        raise ValueError(f"At most one of `r0` and `r1` can be given. Received: {r0=}, {r1=}")
    if r0 is not None:
        rates = r0, 1.0 - (label_prior - r0 * (1.0 - class_prior)) / class_prior
    elif r1 is not None:
        rates = (label_prior - (1.0 - r1) * class_prior) / (1.0 - class_prior), r1
    elif class_prior == 0.5:
        raise ValueError("`class_prior` must not be 1/2: equal rates then change no prior.")
    else:
        rates = ((label_prior - class_prior) / (1.0 - 2.0 * class_prior),) * 2
    rates = float(rates[0]), float(rates[1])
    if min(rates) < -1e-9 or sum(rates) >= 1.0:
        raise ValueError(
            "No flip rates explain `class_prior` and `label_prior`. Received: "
            f"{class_prior=}, {label_prior=}, which would need r0={rates[0]}, r1={rates[1]}"
        )
    return max(rates[0], 0.0), max(rates[1], 0.0)


def _check_rates(r0: float, r1: float) -> None:
    check_number("r0", r0, high=1.0)
    check_number("r1", r1, high=1.0)
    if r0 + r1 >= 1.0:
        raise ValueError(
            f"`r0` and `r1` must add up to less than 1, or labels mislead. Received: {r0=}, {r1=}"
        )
