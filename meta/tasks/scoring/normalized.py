"""Losses that can be compared between tasks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random
from meta.tasks.base import Task
from meta.tasks.scoring import curves
from meta.tasks.wrapper import Wrapper

_SMALLEST_SPREAD, _SMALLEST_FRACTION = 0.1, 1e-3
# A problem that diverges costs three times what one costs on which nothing was learned.
_LARGEST_SCORE = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Normalized(Wrapper):
    """A task whose score is 0 for the loss of a tuned Adam, and 1 or less at the start.

    The optimizer sees the loss as it is; only what meta-training makes of it is
    normalised, so that no family dominates by the scale of its losses. The score is

        log(loss / reference) / max(log(initial / reference), 0.1)

    of losses above the task's `loss_floor`: a factor counts the same near the end of a
    training as at its start, and where Adam hardly lowers the loss, the noise of a batch
    is not blown up. A loss counts as at least a thousandth of the reference. Tasks
    without a floor have `(loss - reference) / (initial - reference)`. Scores are clipped
    at 3: a problem that diverges costs three times what one costs on which nothing was
    learned.

    Args:
        task: `Task`.
        initial, reference: sequences of the loss at the start and at the end of a tuned
            Adam, one for each variant of the task (`meta.tasks.scoring.references`).

    Raises:
        ValueError: if there are not as many as the task has variants, some initial loss
            is not above its reference, or some reference not above the floor.

    Source: the idea is that of Metz et al., arXiv 2009.11243, section 4, which normalises
    by the losses of baselines; this form is ours.
    """

    # Both, as tensors.
    _known: ClassVar[dict[str, Tensor]]

    initial: Any
    reference: Any
    loss_clip: ClassVar[float] = _LARGEST_SCORE

    def __post_init__(self) -> None:
        task, initial, reference = self.task, self.initial, self.reference
        _check_count(task, initial=initial, reference=reference)
        if not (np.asarray(initial) > np.asarray(reference)).all():
            raise ValueError(
                "Each of `initial` must be above its `reference`. "
                f"Received: initial={initial}, reference={reference}"
            )
        floor = task.loss_floor
        if floor is not None and not (np.asarray(reference) > floor).all():
            raise ValueError(
                f"Each of `reference` must be above the task's loss_floor={floor}. "
                f"Received: reference={reference}"
            )
        known = {"initial": initial, "reference": reference}
        known = {name: tf.constant(values, tf.float32) for name, values in known.items()}
        object.__setattr__(self, "_known", known)

    def score(self, losses: Tensor, setting: Mapping[str, Any]) -> Tensor:
        losses = self.task.score(losses, setting)
        initial, reference = (
            tf.gather(values, setting["variant"]) for values in self._known.values()
        )
        floor = self.task.loss_floor
        if floor is None:
            return (losses - reference) / (initial - reference)
        spread = tf.math.log((initial - floor) / (reference - floor))
        fraction = tf.maximum((losses - floor) / (reference - floor), _SMALLEST_FRACTION)
        return tf.math.log(fraction) / tf.maximum(spread, _SMALLEST_SPREAD)


@dataclasses.dataclass(frozen=True, eq=False)
class AdamSteps(Wrapper):
    """A task whose score tells after how many steps a tuned Adam has such a loss.

    With t(loss) from `curves`, interpolated linearly in the loss between its knots, and
    with T the last of them, the score is

        1 - log(t(loss)) / log(T):

    1 at the start, 0 for what Adam reaches in T steps. Being in units of time, it weighs
    all tasks alike: those whose loss falls by orders of magnitude, those that go from bad
    to chance in a few steps, and those on which Adam stands still for a hundred. Above the
    first loss it goes on with the slope between the ends, and it is clipped at 3. Below the
    last it is -log(1 + x), with x the further fall as a share of Adam's: where Adam's is
    next to nothing, one task would outweigh all others without the logarithm.

    Args:
        task: `Task`.
        losses: for each variant of the task, what `curves` says of it.

    Raises:
        ValueError: if there are not as many as the task has variants, or one does not fall.
    """

    # The same as a tensor.
    _losses: ClassVar[Tensor]

    losses: Any
    loss_clip: ClassVar[float] = _LARGEST_SCORE

    def __post_init__(self) -> None:
        _check_count(self.task, losses=self.losses)
        losses = np.asarray(self.losses, np.float64)
        if losses.shape[1:] != (len(curves.KNOTS),) or not (losses[:, 0] > losses[:, -1]).all():
            raise ValueError(
                f"`losses` must hold {len(curves.KNOTS)} for each variant, the last below the "
                f"first. Received: losses={losses.tolist()}"
            )
        object.__setattr__(self, "_losses", tf.constant(losses, tf.float32))

    def score(self, losses: Tensor, setting: Mapping[str, Any]) -> Tensor:
        losses = self.task.score(losses, setting)[..., None]
        knots = tf.gather(self._losses, setting["variant"])
        before, after = knots[..., :-1], knots[..., 1:]
        drop = before - after
        passed = tf.clip_by_value((before - losses) / tf.maximum(drop, 1e-30), 0.0, 1.0)
        passed = tf.where(drop > 0, passed, tf.cast(losses < after, tf.float32))
        fraction = tf.reduce_sum(passed * tf.constant(curves.FRACTIONS, tf.float32), axis=-1)
        first, last, losses = knots[..., 0], knots[..., -1], losses[..., 0]
        above = tf.maximum(losses - first, 0.0) / (first - last)
        below = tf.math.log1p(tf.maximum(last - losses, 0.0) / (first - last))
        return 1.0 - fraction + above - below


def _check_count(task: Task, **given: Any) -> None:
    """Raises unless there is a value for each variant of the task."""
    for name, values in given.items():
        if len(values) != task.num_variants:
            raise ValueError(
                f"`{name}` must have a value for each of the {task.num_variants} variants. "
                f"Received: {len(values)} values"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class RelativeToStart(Wrapper):
    """A task whose score is 0 at the start of a problem: `log(loss / initial)`.

    The initial loss is that of the problem's own start on a batch of its own, so that no
    optimizer's losses are needed to compare problems. Losses are those above the task's
    `loss_floor`, and count as at least a thousandth of the initial one. A task without a
    floor has `loss - initial`. Scores are clipped at 3.

    Args:
        task: `Task`.
    """

    loss_clip: ClassVar[float] = _LARGEST_SCORE

    def draw(self, seed: Tensor, num: int, variant: Any = None) -> dict[str, Any]:
        seeds = random.split(seed, 3)
        setting = self.task.draw(seeds[0], num, variant)
        start = self.task.init(seeds[1], num, setting)
        initial = self.task.loss(start, self.task.batch("train", seeds[2], num, setting), setting)
        # The start must be the one whose loss is known.
        start_seed = tf.broadcast_to(seeds[1], [num, 2])
        return {"task": setting, "initial": initial, "start_seed": start_seed}

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        return self.task.init(setting["start_seed"][0], num, setting["task"])

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        return self.task.batch(split, seed, num, setting["task"])

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        return self.task.loss(params, data, setting["task"])

    def seen_gradient(
        self, grads: Sequence[Tensor], data: Any, setting: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        return self.task.seen_gradient(grads, data, setting["task"])

    def score(self, losses: Tensor, setting: Mapping[str, Any]) -> Tensor:
        losses = self.task.score(losses, setting["task"])
        initial = self.task.score(setting["initial"], setting["task"])
        floor = self.task.loss_floor
        if floor is None:
            return losses - initial
        fraction = (losses - floor) / tf.maximum(initial - floor, 1e-30)
        return tf.math.log(tf.maximum(fraction, _SMALLEST_FRACTION))
