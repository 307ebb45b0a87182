"""Classification and regression of tables with a multilayer perceptron."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from lopt_keras.types import Tensor
from meta import random
from meta.tasks import ranges
from meta.tasks.families import noise
from meta.tasks.families.table import TableTask
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class TableMLP(TableTask):
    """An MLP classifier of a table, or, if its target is a number, an MLP regressor.

    Args:
        hidden_units: units of each hidden layer.
        activation: any Keras activation by name.
        regression_loss: one of `layers.REGRESSION_LOSSES`; without effect on classes.
        input_noise: standard deviation of noise on the training inputs, which are
            standardised.
        target_noise: fraction of training labels that are drawn at random, or standard
            deviation of noise on training targets, in each batch anew.
        dataset, batch_size, init_scale, data_dir: as for `TableTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    name: ClassVar = "table_mlp"
    architecture: ClassVar = {
        "dataset": ranges.Choice("breast_cancer", "diabetes", "iris_plants", "wine"),
        "hidden_units": ranges.Layers(1, 3, ranges.Size(8, 32)),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "regression_loss": ranges.Where(
            "dataset", "diabetes", ranges.Choice(*layers.REGRESSION_LOSSES), "squared"
        ),
        "batch_size": ranges.Size(8, 64),
    }
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "input_noise": ranges.Uniform(0.0, 0.5),
        "target_noise": ranges.Uniform(0.0, 0.3),
    }
    large: ClassVar = {"hidden_units": ranges.Layers(2, 3, ranges.Size(128, 256))}

    hidden_units: tuple[int, ...] = (16,)
    activation: str = "relu"
    regression_loss: str = "squared"
    input_noise: float = 0.0
    target_noise: float = 0.0

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        inputs, targets = super().batch(split, seed, num, setting)
        if split != "train":
            return inputs, targets
        seeds = random.split(seed, 3)
        inputs = noise.normal(inputs, setting["input_noise"], seeds[0])
        amount = setting["target_noise"]
        if self._num_classes is None:
            return inputs, noise.normal(targets, amount, seeds[1])
        return inputs, noise.random_labels(targets, amount, self._num_classes, seeds[1:])
