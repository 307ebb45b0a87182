"""Which way the steps go: along the gradient, momentum, or the directions of known optimizers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lopt_keras import rules
from lopt_keras.rules.base import State
from lopt_keras.types import Array, Tensor
from meta.analysis import programs
from meta.analysis.recording import Recording
from meta.analysis.subject import Subject

_MOMENTUM, _NO_DECAY = 0.9, 1e-12


class Explained(NamedTuple):
    """Steps as a linear combination of directions.

    Attributes:
        names: of the directions.
        coefficients: of minus each direction in the step, `[D]`.
        variance: the fraction of the steps' squares that the combination explains.
        alone: the same for each direction alone, `[D]`.
        lost: how much of `variance` is lost without each, `[D]`.
        cosines: mean cosine of the step with minus each direction, `[D]`.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    variance: float
    alone: np.ndarray
    lost: np.ndarray
    cosines: np.ndarray


REFERENCES = {
    "momentum": Subject.hand_designed("momentum", rules.SGD(1.0, _MOMENTUM)),
    "Adam": Subject.hand_designed("Adam", rules.Adam(1.0)),
    "sign": Subject.hand_designed("sign", rules.Lion(1.0)),
    "Muon": Subject.hand_designed(
        "Muon", rules.Muon(1.0, weight_decay=_NO_DECAY, adam_weight_decay=_NO_DECAY)
    ),
}
"""Whose steps, at a learning rate of 1, are the directions besides the gradient."""


def along(
    recording: Recording, references: Mapping[str, Subject] | None = None
) -> dict[str, list[Array]]:
    """What known optimizers would do at the gradients of a training.

    Args:
        recording: `Recording`.
        references: dict from name to `Subject`; by default `REFERENCES`.

    Returns:
        Dict from the name to a list of `[T, P, *shape]`, one for each tensor: minus the step that
        the optimizer would take at these parameters. `gradient` is the gradient itself.
    """
    references = REFERENCES if references is None else references
    found = {"gradient": recording.grads}
    for name, subject in references.items():
        found[name] = _shadow(subject, recording)
    return found


def explain(
    updates: Sequence[Array], directions: Mapping[str, Sequence[Array]], normalised: bool = True
) -> Explained:
    """Steps as a linear combination of directions, by least squares.

    Args:
        updates: list of arrays `[T, P, *shape]`, one for each tensor.
        directions: dict from name to such lists.
        normalised: whether the steps and directions of each tensor have a size of 1 in each
            step, so that schedules and sizes of tensors play no role.

    Returns:
        `Explained`.

    Raises:
        ValueError: if there are no steps, or all are zero.
    """
    names = tuple(directions)
    if not updates or not any(np.any(x) for x in updates):
        raise ValueError("There are no steps to explain: all are zero.")
    target = _columns([updates], normalised)[:, 0]
    matrix = -_columns([directions[name] for name in names], normalised)
    cosines = np.mean([_cosines([updates], [directions[name]]) for name in names], axis=1)
    total = target @ target

    def variance(columns: Array) -> tuple[Array, float]:
        coefficients = np.linalg.lstsq(columns, target, rcond=1e-10)[0]
        rest = target - columns @ coefficients
        return coefficients, 1.0 - (rest @ rest) / total

    coefficients, whole = variance(matrix)
    alone = [variance(matrix[:, [i]])[1] for i in range(len(names))]
    lost = [
        whole - variance(np.delete(matrix, i, axis=1))[1] if len(names) > 1 else whole
        for i in range(len(names))
    ]
    return Explained(
        names, coefficients, float(whole), np.asarray(alone), np.asarray(lost), -cosines
    )


def of_kind(recording: Recording, kind: str) -> list[int]:
    """Which tensors are of a kind: list of indices."""
    return [i for i, own in enumerate(recording.kinds) if own == kind]


def _shadow(subject: Subject, recording: Recording) -> list[Array]:
    """Minus the steps that a rule would take at the gradients of a training."""
    problems = recording.grads[0].shape[1]
    theta, rule = subject.copies(problems), subject.rule

    def step(
        state: State, grads: Sequence[Tensor], params: Sequence[Tensor], i: Tensor
    ) -> tuple[list[Tensor], State]:
        signals = rules.Signals.silent(tf.fill([problems], i))
        return rule.update(theta, state, grads, params, signals)

    state = rule.init_state(theta, [tf.constant(x[0]) for x in recording.params])
    rows, program = [], None
    for i in range(len(recording.grads[0])):
        grads, params = (
            [tf.constant(x[i]) for x in tensors] for tensors in (recording.grads, recording.params)
        )
        arguments = state, grads, params, tf.constant(i)
        program = program or programs.traced(step, *arguments)
        updates, state = program(*arguments)
        rows.append([-x.numpy() for x in updates])
    return [np.stack(tensors) for tensors in zip(*rows, strict=True)]


def _columns(lists: Sequence[Sequence[Array]], normalised: bool) -> Array:
    """Each list of arrays as one column: `[entries, lists]` float64."""
    return np.stack([_column(tensors, normalised) for tensors in lists], axis=1)


def _column(tensors: Sequence[Array], normalised: bool) -> Array:
    parts = []
    for x in tensors:
        x = np.asarray(x, "float64").reshape(*x.shape[:2], -1)
        if normalised:
            x = x / np.maximum(np.linalg.norm(x, axis=2, keepdims=True), 1e-30)
        parts.append(x.ravel())
    return np.concatenate(parts)


def _cosines(first: Sequence[Sequence[Array]], second: Sequence[Sequence[Array]]) -> Array:
    """Of each tensor in each step of each problem, `[N]`."""
    found = []
    for x, y in zip(first[0], second[0], strict=True):
        x, y = (np.asarray(a, "float64").reshape(*a.shape[:2], -1) for a in (x, y))
        sizes = np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2)
        found.append(((x * y).sum(axis=2) / np.maximum(sizes, 1e-30)).ravel())
    return np.concatenate(found)
