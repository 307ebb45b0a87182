"""Classification or regression of a few examples, which a network can learn by heart."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random
from meta.tasks import ranges
from meta.tasks.families.table import TableTask
from meta.tasks.networks import layers

_MOST = 200


@dataclasses.dataclass(frozen=True, eq=False)
class FewExamples(TableTask):
    """An MLP that sees a few examples of a table, without noise, again and again.

    Each problem draws its examples with replacement. The train loss can fall to zero, and the
    validation loss then rises: to meta-train on validation loss is to learn when to stop.

    Args:
        hidden_units: units of each hidden layer.
        activation: any Keras activation by name.
        regression_loss: one of `layers.REGRESSION_LOSSES`; without effect on classes.
        num_examples: how many examples are drawn, in [1, 200], rounded down.
        dataset, batch_size, init_scale, data_dir: as for `TableTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    name: ClassVar = "few_examples"
    architecture: ClassVar = {
        "dataset": ranges.Choice("diabetes", "digits", "iris_plants", "wine"),
        "hidden_units": ranges.Layers(1, 3, ranges.Size(16, 64)),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "regression_loss": ranges.Where(
            "dataset", "diabetes", ranges.Choice(*layers.REGRESSION_LOSSES), "squared"
        ),
        "batch_size": ranges.Size(8, 32),
    }
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "num_examples": ranges.LogUniform(20.0, 200.0),
    }

    hidden_units: tuple[int, ...] = (32,)
    activation: str = "relu"
    regression_loss: str = "squared"
    num_examples: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = np.ravel(np.asarray(self.num_examples))
        if not ((counts >= 1) & (counts <= _MOST)).all():
            raise ValueError(
                f"`num_examples` must be in [1, {_MOST}]. Received: num_examples={counts.tolist()}"
            )

    def draw(self, seed: Tensor, num: int, variant: Tensor | None = None) -> dict[str, Any]:
        setting = super().draw(seed, num, variant)
        total = self._splits["train"][1].shape[0]
        return {**setting, "examples": random.integers((num, _MOST), seed, total)}

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        if split != "train":
            return super().batch(split, seed, num, setting)
        inputs, targets = self._splits[split]
        count = tf.floor(setting["num_examples"])[:, None]
        chosen = tf.floor(random.uniform((num, self.batch_size), seed) * count)
        # Rounding can make of a number just below 1 one that is 1.
        chosen = tf.cast(tf.minimum(chosen, count - 1.0), tf.int32)
        indices = tf.gather(setting["examples"], chosen, batch_dims=1)
        return tf.gather(inputs, indices), tf.gather(targets, indices)
