"""Losses that can be compared between tasks."""

import tensorflow as tf

from meta.tasks import base


class Normalized(base.Task):
    """A task whose score is 1 for the loss at the start and 0 for that of a tuned Adam.

    The optimizer sees the loss as it is; only what meta-training makes of it, the score
    `(loss - reference) / (initial - reference)`, is normalised, so that no family
    dominates by the scale of its losses. Scores are clipped at +-3: a problem that
    diverges costs three times what one costs on which nothing was learned.

    Args:
        task: `Task`.
        initial, reference: sequences of the loss at the start and at the end of a tuned
            Adam, one for each variant of the task (`meta.tasks.references`).

    Raises:
        ValueError: if there are not as many as the task has variants, or some initial
            loss is not above its reference.

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
        self._reference = tf.constant(reference, tf.float32)
        self._gain = tf.constant(initial, tf.float32) - self._reference
        if not (self._gain.numpy() > 0).all():
            raise ValueError(
                "Each of `initial` must be above its `reference`. "
                f"Received: initial={initial}, reference={reference}"
            )

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
        variant = setting["variant"]
        return (losses - tf.gather(self._reference, variant)) / tf.gather(self._gain, variant)

    def get_config(self):
        return self.task.get_config()
