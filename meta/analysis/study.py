"""What the sections of an analysis share: trainings, systems and typical gradients."""

import functools

import numpy as np
import tensorflow as tf

from lopt_keras import rules
from lopt_keras.types import Array
from meta import random
from meta.analysis import recording
from meta.analysis.dynamics import Dynamics
from meta.analysis.recording import Recording
from meta.analysis.subject import Subject
from meta.evaluation import metrics
from meta.inner.training import InnerTraining
from meta.tasks.base import Task

ADAM = "Adam"
"""The name of the optimizer beside which the subject stands."""

_RATES = 10.0 ** np.arange(-4.0, 0.5, 0.5)
_SHAPES = {"vector": (4,), "matrix": (4, 4)}
_ALIKE_STEPS = 3
_DRIVEN = 16


class Study:
    """An analysis of one subject beside Adam, on one task.

    Args:
        subject: `Subject`.
        task: `Task` for trainings.
        num_steps: of each training.
        num_problems: of the task, side by side.
        seed: integer, of everything random.
        adam_rate: Adam's learning rate; by default that of 9, half-decades apart, with the lowest
            validation loss at the end, on problems of its own.
    """

    def __init__(
        self,
        subject: Subject,
        task: Task,
        num_steps: int,
        num_problems: int = 2,
        seed: int = 0,
        adam_rate: float | None = None,
    ) -> None:
        self.subject, self.task = subject, task
        self.num_steps, self.num_problems = num_steps, num_problems
        self.seed = random.seed(seed)
        self._adam_rate = adam_rate
        self._trainings: dict[tuple[str, bool], Recording] = {}
        self._systems: dict[str, dict[str, Dynamics]] = {}

    @functools.cached_property
    def adam(self) -> Subject:
        """Adam with a tuned learning rate, a `Subject`."""
        rate = self._adam_rate
        if rate is None:
            candidates = [rules.Adam(float(rate)).init_theta() for rate in _RATES]
            seed = random.fold_in(self.seed, 1)
            shape = len(candidates), self.num_problems, self.num_steps
            train = InnerTraining(self.task, rules.Adam(), *shape, True)
            losses = np.array([metrics.final(c.held_out).mean() for c in train(candidates, seed)])
            if not np.isfinite(losses).any():
                raise ValueError(
                    f"No learning rate of {_RATES[0]:g} to {_RATES[-1]:g} lets Adam train the "
                    f"task {self.task.name!r}."
                )
            rate = float(_RATES[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))])
        return Subject.hand_designed(ADAM, rules.Adam(rate))

    @property
    def subjects(self) -> list[Subject]:
        """The subject and Adam."""
        return [self.subject, self.adam]

    def training(self, subject: Subject, signals_known: bool = False) -> Recording:
        """The `Recording` of a subject; made once.

        Raises:
            ValueError: if the training diverges.
        """
        key = subject.name, signals_known
        if key not in self._trainings:
            self._trainings[key] = recording.record(
                subject,
                self.task,
                self.num_steps,
                random.fold_in(self.seed, 0),
                self.num_problems,
                signals_known,
                keep_states=self.num_steps,
            )
        found = self._trainings[key]
        if found.diverged.any():
            raise ValueError(f"{subject.name} diverges on the task {self.task.name!r}.")
        return found

    def hears_horizon(self, subject: Subject) -> bool:
        """Whether there are two trainings, told and not."""
        return "total_steps" in subject.rule.signals

    def systems(self, subject: Subject) -> dict[str, Dynamics]:
        """Tensors to look at: dict from the kind to `Dynamics`.

        One for a single parameter if the rule treats each alike, otherwise one for each kind.
        Each hears the median of the training's losses.
        """
        if subject.name not in self._systems:
            shapes = {"parameter": ()} if treats_alike(subject) else _SHAPES
            loss = float(np.median(self.training(subject).train_loss))
            self._systems[subject.name] = {
                kind: Dynamics(subject, shape, step=self.num_steps, loss=loss)
                for kind, shape in shapes.items()
            }
        return self._systems[subject.name]

    def gradient_size(self, subject: Subject, kind: str = "parameter") -> float:
        """A typical size: the median over a training of the root mean square over entries."""
        found = self.training(subject)
        chosen = [g for g, own in zip(found.grads, found.kinds, strict=True) if own == kind]
        parts = [g.reshape(len(g), -1) for g in chosen or found.grads]
        sizes = np.sqrt(np.mean(np.square(np.concatenate(parts, axis=1)), axis=1))
        size = float(np.median(sizes))
        if not (np.isfinite(size) and size > 0):
            raise ValueError(f"The gradients of {subject.name} are zero on this task.")
        return size

    def driven(self, subject: Subject, kind: str) -> tuple[Array, Array, Array]:
        """States and steps of a system that gradients of a training drive.

        Returns:
            States `[T, N, size]`, steps `[T, N]` and the gradients `[T, N]`.
        """
        dynamics, found = self.systems(subject)[kind], self.training(subject)
        chosen = [g for g, own in zip(found.grads, found.kinds, strict=True) if own == kind]
        columns = np.concatenate([g.reshape(len(g), -1) for g in chosen or found.grads], axis=1)
        rng = np.random.default_rng(0)
        columns = columns[:, rng.choice(columns.shape[1], _DRIVEN)]
        state = np.repeat(dynamics.start()[None], _DRIVEN, axis=0)
        states, updates = [], []
        for t, gradients in enumerate(columns):
            state, update = dynamics(state, gradients, t)
            states.append(state)
            updates.append(update)
        return np.stack(states), np.stack(updates), columns


def treats_alike(subject: Subject) -> bool:
    """Whether a rule steps with each entry of a matrix as with a tensor of that entry alone."""
    rng = np.random.default_rng(0)
    params = rng.standard_normal(4).astype("float32")
    grads = rng.standard_normal((_ALIKE_STEPS, 4)).astype("float32")
    together = _steps(subject, params.reshape(1, 2, 2), grads.reshape(-1, 1, 2, 2))
    alone = _steps(subject, params, grads)
    return np.allclose(together.ravel(), alone.ravel(), rtol=1e-3, atol=1e-9)


def _steps(subject: Subject, param: Array, grads: Array) -> Array:
    """The steps at the gradients of one tensor, `[T, P, *shape]`."""
    theta, params = subject.copies(len(param)), [tf.constant(param)]
    state, updates = subject.rule.init_state(theta, params), []
    for i, grad in enumerate(grads):
        signals = rules.Signals.silent(tf.fill([params[0].shape[0]], i))
        update, state = subject.rule.update(theta, state, [tf.constant(grad)], params, signals)
        updates.append(update[0].numpy())
    return np.stack(updates)
