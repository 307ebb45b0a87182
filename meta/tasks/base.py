"""The contract of a task: an inner problem for optimizers to solve."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random


@dataclasses.dataclass(frozen=True, eq=False)
class Task(abc.ABC):
    """An inner problem, with an explicit particle axis and stateless randomness.

    A task is a frozen dataclass, and its fields are of two kinds. The *architecture*
    (sizes, activation, dataset, batch size) decides shapes and code: tasks that share
    it are one XLA program. The *setting* (scale of the start, noise, ...) is data:
    such a field takes a number, or a sequence of numbers, one for each variant of
    the task, and all variants run side by side in one program.

    Every method is pure, compiles under XLA, can be differentiated twice, and works on
    many independent problems at once. A seed is one of `meta.random`: the same seed
    gives the same values on every machine.

    Attributes:
        name: of the family.
        architecture, setting: the ranges, of `meta.tasks.ranges`, from which tasks of
            the family draw their fields; a field that neither names has no range.
        large: ranges that replace those of the architecture for tasks that are 10 to
            100 times larger than those of meta-training; empty if there are none.
        num_architectures: how many architectures tasks of meta-training have between
            them, and so how many programs the family is.
        loss_clip: outer losses are clipped at this value, so that a diverged
            particle costs a bounded amount.
        loss_floor: what no loss can be below, or None.
        num_variants: how many variants of the task there are.
    """

    name: ClassVar[str] = ""
    architecture: ClassVar[Mapping[str, Any]] = {}
    setting: ClassVar[Mapping[str, Any]] = {}
    large: ClassVar[Mapping[str, Any]] = {}
    num_architectures: ClassVar[int] = 4
    loss_clip: ClassVar[float] = 10.0
    loss_floor: ClassVar[float | None] = 0.0
    # Of the fields of an instance.
    num_variants: ClassVar[int]
    _columns: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        columns = {name: np.ravel(np.asarray(getattr(self, name))) for name in self.setting}
        counts = {name: len(column) for name, column in columns.items()}
        variants = max(counts.values(), default=1)
        for name, column in columns.items():
            if column.dtype.kind not in "fiu" or not np.isfinite(column).all():
                raise ValueError(
                    f"`{name}` must be a finite number, or a sequence of them. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
            if counts[name] not in (1, variants) or not variants:
                raise ValueError(
                    f"`{name}` must be one number, or as many as the other settings have "
                    f"({variants}). Received: {name}={getattr(self, name)!r}"
                )
        columns = {
            name: tf.constant(np.broadcast_to(column, variants), tf.float32)
            for name, column in columns.items()
        }
        object.__setattr__(self, "_columns", columns)
        object.__setattr__(self, "num_variants", variants)

    def draw(self, seed: Tensor, num: int, variant: Any = None) -> dict[str, Any]:
        """Which variant of the task each of `num` problems is.

        Args:
            seed: `[2]`.
            num: Python int.
            variant: `[num]` int32, to choose them; by default they are drawn.

        Returns:
            Dict of `[num, ...]`: an entry for each setting, float32, and `variant`,
            int32.
        """
        if variant is None:
            variant = random.integers((num,), seed, self.num_variants)
        drawn = {name: tf.gather(column, variant) for name, column in self._columns.items()}
        return {"variant": variant, **drawn}

    @abc.abstractmethod
    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        """Initial parameters of `num` independent problems: list of `[num, *shape]`.

        Args:
            seed: `[2]`.
            num: Python int.
            setting: as `draw` returned it.
        """

    @abc.abstractmethod
    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        """A random batch for each of `num` problems.

        Args:
            split: "train", "validation" or "test", a Python string.
            seed: `[2]`.
            num: Python int.
            setting: as `draw` returned it.

        Returns:
            A nest of `[num, ...]` tensors, as `loss` takes it.
        """

    @abc.abstractmethod
    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        """The loss of each particle: `[P]`, from params, data and setting of P particles."""

    def seen_gradient(
        self, grads: Sequence[Tensor], data: Any, setting: Mapping[str, Any]
    ) -> Sequence[Tensor]:
        """The gradient that the optimizer sees; here that of `loss` itself.

        Args:
            grads: list of `[P, *shape]`.
            data: the training batch of which it is the gradient.
            setting: of P particles.

        Returns:
            Like `grads`.
        """
        return grads

    def score(self, losses: Tensor, setting: Mapping[str, Any]) -> Tensor:
        """The scores with which meta-training compares tasks; here the losses themselves.

        Args:
            losses: `[..., P]`.
            setting: of P particles.

        Returns:
            `[..., P]`.
        """
        return losses

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each parameter of one problem: list of tuples."""

        @tf.function(autograph=False)
        def init() -> list[Tensor]:  # Traced, not run.
            seed = random.seed(0)
            return self.init(seed, 1, self.draw(seed, 1))

        params = init.get_concrete_function().structured_outputs
        return [tuple(param.shape[1:]) for param in params]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        fields = (f for f in dataclasses.fields(self) if f.metadata.get("in_config", True))
        return {field.name: plain(getattr(self, field.name)) for field in fields}


def elsewhere(default: Any = None) -> Any:
    """A field that says where things are on this machine: not part of the config."""
    return dataclasses.field(default=default, metadata={"in_config": False})


def plain(value: Any) -> Any:
    """As JSON can hold it; a dataset is its name."""
    if isinstance(value, tuple | list | np.ndarray) and not hasattr(value, "name"):
        return np.asarray(value).tolist()
    return getattr(value, "name", value)
