"""Losses that can be compared between tasks."""

import numpy as np
import tensorflow as tf

from meta.tasks import base
from meta.tasks.scoring import curves

_SMALLEST_SPREAD, _SMALLEST_FRACTION = 0.1, 1e-3


class _Wrapped(base.Task):
    """A task with another score: the optimizer sees the loss as it is."""

    # A problem that diverges costs three times what one costs on which nothing was learned.
    loss_clip = 3.0

    def __init__(self, task):
        self.task = task
        self.num_variants = task.num_variants

    def draw(self, seed, num, variant=None):
        return self.task.draw(seed, num, variant)

    def init(self, seed, num, setting):
        return self.task.init(seed, num, setting)

    def batch(self, split, seed, num, setting):
        return self.task.batch(split, seed, num, setting)

    def loss(self, params, data, setting):
        return self.task.loss(params, data, setting)

    def seen_gradient(self, grads, data, setting):
        return self.task.seen_gradient(grads, data, setting)

    def get_config(self):
        return self.task.get_config()

    def _check_count(self, **given):
        for name, values in given.items():
            if len(values) != self.num_variants:
                raise ValueError(
                    f"`{name}` must have a value for each of the {self.num_variants} variants. "
                    f"Received: {len(values)} values"
                )


class Normalized(_Wrapped):
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

    def __init__(self, task, initial, reference):
        super().__init__(task)
        self._check_count(initial=initial, reference=reference)
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
        self._initial = tf.constant(initial, tf.float32)
        self._reference = tf.constant(reference, tf.float32)

    def score(self, losses, setting):
        losses = self.task.score(losses, setting)
        initial, reference = (
            tf.gather(values, setting["variant"]) for values in (self._initial, self._reference)
        )
        floor = self.task.loss_floor
        if floor is None:
            return (losses - reference) / (initial - reference)
        spread = tf.math.log((initial - floor) / (reference - floor))
        fraction = tf.maximum((losses - floor) / (reference - floor), _SMALLEST_FRACTION)
        return tf.math.log(fraction) / tf.maximum(spread, _SMALLEST_SPREAD)


class AdamSteps(_Wrapped):
    """A task whose score tells after how many steps a tuned Adam has such a loss.

    With t(loss) from `curves`, interpolated linearly in the loss between its knots, and
    with T the last of them, the score is

        1 - log(t(loss)) / log(T):

    1 at the start, 0 for what Adam reaches in T steps. Being in units of time, it weighs
    all tasks alike: those whose loss falls by orders of magnitude, those that go from bad
    to chance in a few steps, and those on which Adam stands still for a hundred. Beyond
    both ends it goes on with the slope between them, and it is clipped at 3.

    Args:
        task: `Task`.
        losses: for each variant of the task, what `curves` says of it.

    Raises:
        ValueError: if there are not as many as the task has variants, or one does not fall.
    """

    def __init__(self, task, losses):
        super().__init__(task)
        self._check_count(losses=losses)
        losses = np.asarray(losses, np.float64)
        if losses.shape[1:] != (len(curves.KNOTS),) or not (losses[:, 0] > losses[:, -1]).all():
            raise ValueError(
                f"`losses` must hold {len(curves.KNOTS)} for each variant, the last below the "
                f"first. Received: losses={losses.tolist()}"
            )
        self._losses = tf.constant(losses, tf.float32)

    def score(self, losses, setting):
        losses = self.task.score(losses, setting)[..., None]
        knots = tf.gather(self._losses, setting["variant"])
        before, after = knots[..., :-1], knots[..., 1:]
        drop = before - after
        passed = tf.clip_by_value((before - losses) / tf.maximum(drop, 1e-30), 0.0, 1.0)
        passed = tf.where(drop > 0, passed, tf.cast(losses < after, tf.float32))
        fraction = tf.reduce_sum(passed * tf.constant(curves.FRACTIONS, tf.float32), axis=-1)
        first, last, losses = knots[..., 0], knots[..., -1], losses[..., 0]
        beyond = tf.maximum(losses - first, 0.0) - tf.maximum(last - losses, 0.0)
        return 1.0 - fraction + beyond / (first - last)
