"""How steps depend on a task: the scale of its loss, batch size, width and depth."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Tensor
from meta import tasks
from meta.analysis import adaptation, recording
from meta.analysis.recording import Recording
from meta.analysis.subject import Subject
from meta.tasks.base import Task
from meta.tasks.sampling.augmentation import Augmented

_MATRICES = {"matrix", "kernel"}


class Sweep(NamedTuple):
    """Steps in short trainings of the variants of a task.

    Attributes:
        values: what was changed, `[V]`.
        relative: sizes of the steps over those of the parameters, geometric means over the
            matrices and the later half of the steps, `[V]`.
        rates: minus the step's part along the gradient over the gradient, likewise, `[V]`; NaN
            where steps go against it.
        exponent, rate_exponent: the powers of the value that they grow with.
    """

    values: np.ndarray
    relative: np.ndarray
    rates: np.ndarray
    exponent: float
    rate_exponent: float


def _mlp(**config: Any) -> Task:
    return tasks.get("image_mlp", **{"hidden_units": (32,), "batch_size": 32, **config})


VARIANTS = {
    "scale of the loss": (
        (0.01, 1.0, 100.0),
        lambda value: Augmented(_mlp(), loss_scale=(value, value)),
    ),
    "batch size": ((8, 32, 128), lambda value: _mlp(batch_size=value)),
    "width": ((8, 32, 128), lambda value: _mlp(hidden_units=(value, value))),
    "depth": ((1, 2, 4), lambda value: _mlp(hidden_units=(32,) * value)),
}
"""By name, the values that are tried and the task of each: an MLP on digits."""


def sweep(
    subject: Subject,
    values: Sequence[Any],
    make_task: Callable[[Any], Task],
    num_steps: int,
    seed: Tensor,
) -> Sweep:
    """The `Sweep` of a rule.

    Args:
        subject: `Subject`.
        values: what is changed, positive numbers.
        make_task: function from a value to a `Task`.
        num_steps: of each training.
        seed: `[2]` int32.

    Raises:
        ValueError: if a training diverges, or the task has no matrix; it names the value.
    """
    relative, rates = [], []
    for value in values:
        found = recording.record(subject, make_task(value), num_steps, seed, keep_states=num_steps)
        if found.diverged.any():
            raise ValueError(f"{subject.name} diverges at the value {value}.")
        if not set(found.kinds) & _MATRICES:
            raise ValueError(f"The task at the value {value} has no matrix to look at.")
        size, rate = _steps(found)
        relative.append(size)
        rates.append(rate)
    tried, sizes, speeds = (np.asarray(x, "float64") for x in (values, relative, rates))
    exponents = [
        adaptation.sensitivity(tried, x) if np.isfinite(x).all() else np.nan
        for x in (sizes, speeds)
    ]
    return Sweep(tried, sizes, speeds, *exponents)


def _steps(found: Recording) -> tuple[float, float]:
    """Relative size and rate of the steps of the matrices, over the later half of a training."""
    half = len(found.train_loss) // 2
    sizes, rates = [], []
    for kind, update, grad, param in zip(
        found.kinds, found.updates, found.grads, found.params, strict=True
    ):
        if kind in _MATRICES:
            u, g, p = (
                x[half:].reshape(len(x) - half, -1).astype("float64") for x in (update, grad, param)
            )
            sizes.append(np.linalg.norm(u, axis=1) / np.linalg.norm(p, axis=1))
            rates.append(-(u * g).sum(axis=1).mean() / np.square(g).sum(axis=1).mean())
    if min(rates) <= 0:
        rates = [np.nan]
    size, rate = (float(np.exp(np.mean(np.log(np.maximum(x, 1e-30))))) for x in (sizes, rates))
    return size, rate
