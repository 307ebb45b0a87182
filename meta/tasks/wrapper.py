"""A task around another one: the one way in which tasks are changed."""

import dataclasses
from typing import Any

from meta.tasks import base


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(base.Task):
    """A task that is another one, but for what a subclass replaces.

    It has the parameters of the other task, of the same shapes.

    Args:
        task: `Task`.
    """

    task: Any

    def __post_init__(self):
        """Nothing of `Task`'s: a wrapper has no setting of its own to check."""

    @property
    def name(self):
        """The task's."""
        return self.task.name

    @property
    def loss_clip(self):
        """The task's."""
        return self.task.loss_clip

    @property
    def loss_floor(self):
        """The task's."""
        return self.task.loss_floor

    @property
    def num_variants(self):
        """The task's."""
        return self.task.num_variants

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
        return self.task.score(losses, setting)

    def parameter_shapes(self):
        return self.task.parameter_shapes()

    def get_config(self):
        """The task's."""
        return self.task.get_config()


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen(Wrapper):
    """A task of which problem i is variant `variant[i]`.

    Args:
        task: `Task`.
        variant: `[num]` int32, of as many problems as `draw` is asked for.
    """

    variant: Any

    def draw(self, seed, num, variant=None):
        return self.task.draw(seed, num, self.variant if variant is None else variant)
