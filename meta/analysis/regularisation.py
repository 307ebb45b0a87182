"""Implicit regularisation: what an optimizer does to weights and to held-out loss."""

from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array
from meta.analysis.recording import Recording

_LOWEST_SHARE = 0.02


class Decay(NamedTuple):
    """What the steps of a training take away of the parameters.

    Attributes:
        share: the weight decay a step, mean over the training: the coefficient of minus the
            parameters in the steps, beside those of known directions.
        along: mean of minus the step's part along the parameters, over their size, whatever it
            comes from: positive where the weights become smaller.
        growth: norm of all parameters at the end over that at the start, `[P]`.
    """

    fraction: float
    along: float
    growth: np.ndarray


class Gap(NamedTuple):
    """Held-out losses of two trainings at equal training loss.

    Attributes:
        levels: training losses that both have reached, falling, `[L]`.
        first, second: held-out losses where the smoothed training loss first gets there, `[L]`.
        first_norms, second_norms: norms of the parameters there, over those at the start, `[L]`.
    """

    levels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    first_norms: np.ndarray
    second_norms: np.ndarray


def decay(recording: Recording, directions: Any) -> Decay:
    """The `Decay` of a training.

    Args:
        recording: `Recording`.
        directions: dict from name to lists of arrays like the gradients: what else the steps may
            consist of, as from `directions.along`.
    """
    columns = [recording.params, *directions.values()]
    stacked = [np.concatenate([_flat(x) for x in tensors], axis=2) for tensors in columns]
    updates = np.concatenate([_flat(x) for x in recording.updates], axis=2)
    fractions = []
    for t in range(len(updates)):
        matrix = np.stack([x[t].ravel() for x in stacked], axis=1)
        sizes = np.maximum(np.linalg.norm(matrix, axis=0), 1e-30)
        # Directions that are almost the same share what is theirs; the parameters are not.
        found = np.linalg.lstsq(matrix / sizes, updates[t].ravel(), rcond=1e-7)[0]
        fractions.append(-found[0] / sizes[0])
    params = stacked[0]
    squares = np.maximum((params * params).sum(axis=2), 1e-30)
    along = -(params * updates).sum(axis=2) / squares
    growth = np.sqrt(squares[-1] / squares[0])
    return Decay(float(np.mean(fractions)), float(along.mean()), growth)


def at_equal_training_loss(
    first: Recording, second: Recording, num_levels: int = 8, width: int = 10
) -> Gap:
    """The `Gap` between two trainings on the same problems.

    Args:
        first, second: `Recording`.
        num_levels: how many training losses are compared.
        width: steps over which losses are averaged, looking back.

    Raises:
        ValueError: if the two have no training losses in common below the start.
    """
    curves = [_curves(recording, width) for recording in (first, second)]
    start = min(train[0] for train, *_ in curves)
    lowest = max(train.min() for train, *_ in curves)
    if not (np.isfinite([start, lowest]).all() and lowest < start - _LOWEST_SHARE * abs(start)):
        raise ValueError(
            "The two trainings have no training losses in common: they start at "
            f"{start:.4g}, and both get no lower than {lowest:.4g}."
        )
    levels = np.linspace(start, lowest, num_levels + 1)[1:]
    arrivals = [[int(np.argmax(train <= level)) for level in levels] for train, *_ in curves]
    held_out = [held[at] for (_, held, _), at in zip(curves, arrivals, strict=True)]
    norms = [norm[at] for (_, _, norm), at in zip(curves, arrivals, strict=True)]
    return Gap(levels, *held_out, *norms)


def _curves(recording: Recording, width: int) -> tuple[Array, Array, Array]:
    """Smoothed training and held-out loss, means over problems, and relative norms: `[T]`."""
    norms = np.sqrt(sum(np.square(_flat(x)).sum(axis=2) for x in recording.params))
    return (
        _smooth(recording.kept_train_loss.mean(axis=1), width),
        _smooth(recording.validation_loss.mean(axis=1), width),
        (norms / norms[0]).mean(axis=1),
    )


def _smooth(values: Any, width: int) -> Array:
    """Mean over the last `width` entries up to each, fewer at the start."""
    total = np.cumsum(np.concatenate([np.zeros(1), values.astype("float64")]))
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - width, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def _flat(x: Array) -> Array:
    """`[T, P, *shape]` -> `[T, P, n]` float64."""
    return np.asarray(x, "float64").reshape(*x.shape[:2], -1)
