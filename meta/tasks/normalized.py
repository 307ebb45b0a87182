"""Losses that can be compared between tasks."""

import numpy as np
import tensorflow as tf

from meta.tasks import base

_SMALLEST_SPREAD, _SMALLEST_SHARE = 0.1, 1e-3


class Normalized(base.Task):
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
            Adam, one for each variant of the task (`meta.tasks.references`).

    Raises:
        ValueError: if there are not as many as the task has variants, some initial loss
            is not above its reference, or some reference not above the floor.

    Source: the idea is that of Metz et al., arXiv 2009.11243, section 4, which normalises
    by the losses of baselines; this form is ours.
    """

    loss_clip = 3.0

    def __init__(self, task, initial, reference):
        self.task = task
        self.num_variants = task.num_variants
        for name, values in (("initial", initial), ("reference", reference)):
            if len(values) != task.num_variants:
                raise ValueError(
                    f"`{name}` must have a value for each of the {task.num_variants} variants. "
                    f"Received: {len(values)} values"
                )
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

    def score(self, losses, setting):
        losses = self.task.score(losses, setting)
        initial, reference = (
            tf.gather(values, setting["variant"]) for values in (self._initial, self._reference)
        )
        floor = self.task.loss_floor
        if floor is None:
            return (losses - reference) / (initial - reference)
        spread = tf.math.log((initial - floor) / (reference - floor))
        share = tf.maximum((losses - floor) / (reference - floor), _SMALLEST_SHARE)
        return tf.math.log(share) / tf.maximum(spread, _SMALLEST_SPREAD)

    def get_config(self):
        return self.task.get_config()
