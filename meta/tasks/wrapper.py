"""A task around another one: the one way in which tasks are changed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lopt_keras.types import Tensor
from meta.tasks import base


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(base.Task):
    """A task that is another one, but for what a subclass replaces.

    It has the parameters of the other task, of the same shapes.

    Args:
        task: `Task`.
    """

    task: Any

    def __post_init__(self) -> None:
        """Nothing of `Task`'s: a wrapper has no setting of its own to check."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """The task's."""
        return self.task.name

    @property
    def loss_clip(self) -> float:  # type: ignore[override]
        """The task's."""
        return self.task.loss_clip

    @property
    def loss_floor(self) -> float | None:  # type: ignore[override]
        """The task's."""
        return self.task.loss_floor

    @property
    def num_variants(self) -> int:  # type: ignore[override]
        """The task's."""
        return self.task.num_variants

    def draw(self, seed: Tensor, num: int, variant: Any = None) -> dict[str, Any]:
        return self.task.draw(seed, num, variant)

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        return self.task.init(seed, num, setting)

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        return self.task.batch(split, seed, num, setting)

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        return self.task.loss(params, data, setting)

    def seen_gradient(
        self, grads: Sequence[Tensor], data: Any, setting: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        return self.task.seen_gradient(grads, data, setting)

    def score(self, losses: Tensor, setting: Mapping[str, Any]) -> Tensor:
        return self.task.score(losses, setting)

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        return self.task.parameter_shapes()

    def get_config(self) -> dict[str, Any]:
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

    def draw(self, seed: Tensor, num: int, variant: Any = None) -> dict[str, Any]:
        return self.task.draw(seed, num, self.variant if variant is None else variant)
