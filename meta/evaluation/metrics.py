"""The figures of an optimizer on a task, against the tuned Adam's."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array
from meta.inner.training import Curves

SMOOTHED = 0.05
"""Fraction of the steps over which losses are averaged, looking back; a final loss is the last."""

NO_WORSE = 0.01
"""What still counts as no worse: this fraction of what Adam gains over the start."""

_CEILING = 9.0
_SMALLEST_GAIN = 0.02


class Metrics(NamedTuple):
    """Of one optimizer on one task, `[seeds]` each.

    A loss is smoothed: the mean over the last 5 % of the steps up to each. One that is
    not finite, or more than 9 times the start's size above the start, counts as that.

    Attributes:
        steps_to_train, steps_to_validation: until the loss is at most the target, which is
            the tuned Adam's final train loss, or its lowest validation loss; infinite if
            never. Adam's own are until it gets there first.
        seconds_to_train: those steps times the seconds of a step.
        train_ratio, validation_ratio: Adam's steps over these. Of an optimizer that
            misses the target, Adam's steps to the final (lowest) loss of this optimizer
            over all steps, so that it is less than 1; of a diverged one, 1 over all steps.
        seconds_ratio: `train_ratio`, times Adam's seconds for a step over these.
        mean_train: train loss, mean over the run.
        final_train, final_validation, lowest_validation: smoothed losses.
        final_test: loss of the last parameters.
        validation_excess, test_excess: final loss minus Adam's, over what Adam gained on
            the start (at least 2 % of it): 0 is as good as Adam, -1 twice the gain, 1 as at
            the start.
        end_ratio: the steps that the tuned Adam needs to the final train loss of this
            optimizer, over all steps. Adam is trained longer for this; if it never arrives,
            all its steps count. NaN if it was not trained longer. This rewards a low end,
            `train_ratio` a fast start. After VeLO, Metz et al., arXiv 2211.09760.
        diverged: some loss is not finite, or the final train loss is above the start by
            more than the start's size.
    """

    steps_to_train: np.ndarray
    steps_to_validation: np.ndarray
    seconds_to_train: np.ndarray
    train_ratio: np.ndarray
    validation_ratio: np.ndarray
    seconds_ratio: np.ndarray
    mean_train: np.ndarray
    final_train: np.ndarray
    final_validation: np.ndarray
    lowest_validation: np.ndarray
    final_test: np.ndarray
    validation_excess: np.ndarray
    test_excess: np.ndarray
    end_ratio: np.ndarray
    diverged: np.ndarray


class Bounded(NamedTuple):
    """Smoothed and bounded `Curves`, and which seeds diverged.

    Attributes:
        train, validation: `[steps, seeds]`.
        test, diverged: `[seeds]`.
        raw_train: bounded, not smoothed.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    diverged: np.ndarray
    raw_train: np.ndarray


def bound(curves: Curves, start: float) -> Bounded:
    """`Bounded` curves.

    Args:
        curves: `meta.inner.training.Curves`.
        start: loss before the first step, from `start_of`.
    """
    if curves.test is None:
        raise ValueError("`curves` must have test losses. Received: curves.test=None")
    every = (curves.train, curves.held_out, curves.test)
    finite = [np.isfinite(losses).reshape(-1, losses.shape[-1]).all(axis=0) for losses in every]
    train, validation = (
        smooth(_bounded(losses, start), _width(losses))
        for losses in (curves.train, curves.held_out)
    )
    diverged = ~np.logical_and.reduce(finite) | (train[-1] > start + _size(start))
    test = _bounded(curves.test, start)
    return Bounded(train, validation, test, diverged, _bounded(curves.train, start))


def bound_longer(losses: Array, start: float, num_steps: int) -> Array:
    """Train losses of a longer training, smoothed as those of `num_steps`: `[steps, seeds]`."""
    return smooth(_bounded(losses, start), _width(losses[:num_steps]))


def _bounded(losses: Array, start: float) -> Array:
    ceiling = start + _CEILING * _size(start)
    losses = losses.astype(np.float64)
    return np.minimum(np.where(np.isfinite(losses), losses, ceiling), ceiling)


def _size(start: float) -> float:
    return max(abs(start), 1e-6)


def smooth(losses: Array, width: int) -> Array:
    """Mean over the last `width` entries up to each, fewer at the start: `[steps, seeds]`."""
    total = np.cumsum(np.pad(losses, ((width, 0), (0, 0))), axis=0)
    count = np.minimum(np.arange(1, len(losses) + 1), width)
    return (total[width:] - total[:-width]) / count[:, None]


def final(losses: Array) -> Array:
    """Of each seed, the mean over the last 5 % of the steps; infinite if some are not finite."""
    tail = losses[-_width(losses) :]
    return np.where(np.isfinite(tail), tail, np.inf).mean(axis=0)


def _width(losses: Array) -> int:
    """How many steps are averaged."""
    return max(1, round(SMOOTHED * len(losses)))


def start_of(curves: Curves) -> float:
    """The loss before the first step: mean over train and validation batches and seeds."""
    return float(np.mean([curves.train[0], curves.held_out[0]]))


def compute(
    own: Bounded,
    adam: Bounded,
    start: float,
    seconds: float,
    adam_seconds: float,
    longer: Sequence[Array] = (),
) -> Metrics:
    """The `Metrics` of an optimizer.

    Args:
        own, adam: `Bounded`, of the optimizer and the tuned Adam.
        start: from `start_of`.
        seconds, adam_seconds: of a step; NaN if they were not measured.
        longer: the tuned Adam's losses in longer trainings, from `bound_longer`. The first of
            them to arrive counts.
    """
    train = _Race(own.train, adam.train, own.train[-1], adam.train[-1], own.diverged)
    lowest, adam_lowest = own.validation.min(axis=0), adam.validation.min(axis=0)
    validation = _Race(own.validation, adam.validation, lowest, adam_lowest, own.diverged)
    train_ratio = train.ratio()
    return Metrics(
        steps_to_train=train.steps,
        steps_to_validation=validation.steps,
        seconds_to_train=train.steps * seconds,
        train_ratio=train_ratio,
        validation_ratio=validation.ratio(),
        seconds_ratio=train_ratio * adam_seconds / seconds,
        mean_train=own.raw_train.mean(axis=0),
        final_train=own.train[-1],
        final_validation=own.validation[-1],
        lowest_validation=lowest,
        final_test=own.test,
        validation_excess=_excess(own.validation[-1], adam.validation[-1], start),
        test_excess=_excess(own.test, adam.test, start),
        end_ratio=_end_ratio(own.train, longer),
        diverged=own.diverged,
    )


def _end_ratio(losses: Array, longer: Sequence[Array]) -> Array:
    if not longer:
        return np.full(losses.shape[1], np.nan)
    steps = np.min([steps_to(other, losses[-1]) for other in longer], axis=0)
    return np.minimum(steps, len(longer[0])) / len(losses)


class _Race:
    """An optimizer and Adam on the way to Adam's loss."""

    def __init__(
        self, losses: Array, adam_losses: Array, loss: Array, adam_loss: Array, diverged: Array
    ) -> None:
        self._all = len(losses)
        self.steps = np.where(diverged, np.inf, steps_to(losses, adam_loss))
        self._adam_steps = steps_to(adam_losses, adam_loss)
        self._adam_steps_to_own = steps_to(adam_losses, np.maximum(loss, adam_loss))
        self._diverged = diverged

    def ratio(self) -> Array:
        """`[seeds]`."""
        missed = np.where(self._diverged, 1.0, self._adam_steps_to_own) / self._all
        reached = np.isfinite(self.steps)
        return np.where(reached, self._adam_steps / np.where(reached, self.steps, 1.0), missed)


def steps_to(losses: Array, target: Array) -> Array:
    """Batches seen until a loss is at most the target, for the first time; or infinity.

    Args:
        losses: `[steps, seeds]`.
        target: `[seeds]`.
    """
    reached = losses <= target
    return np.where(reached.any(axis=0), 1.0 + reached.argmax(axis=0), np.inf)


def _excess(loss: Array, adam_loss: Array, start: float) -> Array:
    """Of a loss over Adam's, in units of Adam's gain, or of 2 % of the start if that is more."""
    unit = np.maximum(start - adam_loss, _SMALLEST_GAIN * _size(start))
    return (loss - adam_loss) / unit


def summarise(metrics: Sequence[Metrics], others: Sequence[Array]) -> dict[str, Any]:
    """The figures of one optimizer over all tasks: dict that JSON can hold.

    Args:
        metrics: list of `Metrics`, one for each task.
        others: list of the `train_ratio`s `[optimizers, seeds]` of all other optimizers.

    Returns:
        Dict. Quantities of a task are medians over its seeds; their distribution over the
        tasks is `quartiles`, a list of lowest, lower quartile, median, upper, highest.
    """
    medians = {
        name: np.array([median(getattr(f, name)) for f in metrics])
        for name in (
            "train_ratio",
            "validation_ratio",
            "seconds_ratio",
            "validation_excess",
            "test_excess",
            *([] if np.isnan(metrics[0].end_ratio).any() else ["end_ratio"]),
        )
    }
    best_others = [median(ratios).max(initial=0.0) for ratios in others]
    diverged = sum(int(f.diverged.sum()) for f in metrics)
    return {
        "tasks": len(metrics),
        "diverged": diverged,
        "pairs": sum(f.diverged.size for f in metrics),
        "quartiles": {name: quantiles(values) for name, values in medians.items()},
        "fraction_train_won": float(np.mean(medians["train_ratio"] > 1.0)),
        "fraction_validation_won": float(np.mean(medians["validation_ratio"] > 1.0)),
        "fraction_fastest": float(np.mean(medians["train_ratio"] > best_others)),
        "fraction_validation_no_worse": float(np.mean(medians["validation_excess"] <= NO_WORSE)),
        "fraction_test_no_worse": float(np.mean(medians["test_excess"] <= NO_WORSE)),
    }


def median(values: Array) -> Array:
    """Over the last axis: of an even number the lower one, as in `quantiles`."""
    return _quantile(values, 0.5, axis=-1)


def quantiles(values: Array) -> list[float | None]:
    """Lowest, quartiles and highest: list of floats, None where they are not finite."""
    found = _quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    return [float(x) if math.isfinite(x) else None for x in found]


def _quantile(values: Array, fraction: float | Sequence[float], axis: int | None = None) -> Array:
    """One of the values: there is nothing between a number and an infinity."""
    return np.quantile(values, fraction, axis=axis, method="inverted_cdf")


def profile(steps: Array, factors: Array) -> Array:
    """Performance profiles: on what fraction of tasks an optimizer is within a factor of the best.

    Args:
        steps: `[tasks, optimizers]`, to the same target; infinite where it was missed.
        factors: `[F]`, at least 1.

    Returns:
        `[F, optimizers]`. A task on which all missed counts for none.

    Source: Dolan and Moré, Mathematical Programming 91 (2002), section 1.
    """
    best = steps.min(axis=1, keepdims=True)
    ratio = steps / np.where(np.isfinite(best), best, 1.0)
    return (ratio[None] <= factors[:, None, None]).mean(axis=1)
