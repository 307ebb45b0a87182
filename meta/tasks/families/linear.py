"""Linear and logistic regression, on tables or on data of a random linear model."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import ranges
from meta.tasks.families import noise
from meta.tasks.families.table import TableTask


@dataclasses.dataclass(frozen=True, eq=False)
class LinearModel(TableTask):
    """A linear model of a table, or of synthetic data, with a penalty on its weights.

    Synthetic inputs are standard normal and drawn anew in every batch of every split;
    every problem has a linear model of its own, standard normal, that gives the targets.

    Columns are multiplied by factors whose squares fall logarithmically and are 1 in the
    mean: where inputs are independent, the condition of the problem.

    Args:
        dataset: tensorflow-datasets name, a `TableDataset`, or a number of columns, for
            synthetic data.
        condition: largest over smallest squared factor of a column.
        noise: on training targets, in each batch anew: see the subclasses.
        l2: weight of the sum of the squared weights (not of the biases) in the training
            loss.
        batch_size, init_scale, data_dir: as for `TableTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.03, 1.5),
        "condition": ranges.LogUniform(1.0, 1e3),
        "noise": ranges.Uniform(0.0, 0.5),
        "l2": ranges.LogUniform(1e-5, 1e-1),
    }

    condition: float = 1.0
    noise: float = 0.0
    l2: float = 0.0

    def prepare(self) -> tuple[int, int | None]:
        if isinstance(self.dataset, int) and not isinstance(self.dataset, bool):
            check_integer("dataset", self.dataset, low=1)
            object.__setattr__(self, "_splits", None)
            return self.dataset, self.synthetic_classes()
        columns, num_classes = super().prepare()
        if (num_classes is None) != (self.synthetic_classes() is None):
            kind = "classes" if num_classes is None else "a number"
            raise ValueError(
                f"`dataset` must not have {kind} as target. Received: {self.dataset!r}"
            )
        return columns, num_classes

    def synthetic_classes(self) -> int | None:
        """The number of classes of synthetic data; None for regression."""
        return None

    def draw(self, seed: Tensor, num: int, variant: Tensor | None = None) -> dict[str, Any]:
        setting = super().draw(seed, num, variant)
        columns, outputs = self._weight_shapes[0]
        exponents = tf.constant(np.linspace(0.0, 1.0, columns), tf.float32)
        squares = tf.pow(setting["condition"][:, None], -exponents)
        squares /= tf.reduce_mean(squares, axis=1, keepdims=True)
        drawn = {**setting, "factors": tf.sqrt(squares)}
        if self._splits is None:
            drawn["model"] = random.normal((num, columns, outputs), random.fold_in(seed, 0))
        return drawn

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        seeds = random.split(seed, 4)
        if self._splits is None:
            columns = self._weight_shapes[0][0]
            inputs = random.normal((num, self.batch_size, columns), seeds[0])
            inputs *= setting["factors"][:, None]
            targets = self.answers(tf.matmul(inputs, setting["model"]), seeds[1])
        else:
            inputs, targets = super().batch(split, seeds[0], num, setting)
            inputs *= setting["factors"][:, None]
        penalty = tf.zeros(num)
        if split == "train":
            targets = self.with_noise(targets, setting["noise"], seeds[2:])
            penalty = setting["l2"]
        return inputs, targets, penalty

    @abc.abstractmethod
    def answers(self, outputs: Tensor, seed: Tensor) -> Tensor:
        """Targets `[num, B]` from the outputs `[num, B, outputs]` of the synthetic model."""

    @abc.abstractmethod
    def with_noise(self, targets: Tensor, amount: Tensor, seeds: Sequence[Tensor]) -> Tensor:
        """Targets `[num, B]` with noise: amount `[num]`, and two seeds."""

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        *examples, penalty = data
        weights, _ = params
        size = tf.reduce_sum(tf.square(weights), axis=(1, 2))
        return super().loss(params, examples, setting) + penalty * size


@dataclasses.dataclass(frozen=True, eq=False)
class LinearRegression(LinearModel):
    """Linear regression by the mean squared error, as Maheswaranathan et al. have it.

    Args:
        noise: standard deviation of noise on training targets, which are standardised.
        dataset, condition, l2, batch_size, init_scale, data_dir: as for `LinearModel`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: one of the three tasks of Maheswaranathan et al., arXiv 2011.02159; condition,
    penalty and tables are ours.
    """

    name: ClassVar = "linear_regression"
    architecture: ClassVar = {
        "dataset": ranges.Choice("diabetes", 4, 16, 64),
        "batch_size": ranges.Size(8, 128),
    }
    large: ClassVar = {"dataset": ranges.Choice(512, 1024)}

    dataset: Any = "diabetes"

    def answers(self, outputs: Tensor, seed: Tensor) -> Tensor:
        # The squares of the columns' factors are 1 in the mean: this has variance 1.
        return outputs[..., 0] * self._weight_shapes[0][0] ** -0.5

    def with_noise(self, targets: Tensor, amount: Tensor, seeds: Sequence[Tensor]) -> Tensor:
        return noise.normal(targets, amount, seeds[0])


@dataclasses.dataclass(frozen=True, eq=False)
class LogisticRegression(LinearModel):
    """Logistic regression, with a logit for each of two or more classes.

    Synthetic labels are drawn from the probabilities that the problem's model gives.

    Args:
        num_classes: of synthetic data.
        noise: fraction of training labels that are drawn at random.
        dataset, condition, l2, batch_size, init_scale, data_dir: as for `LinearModel`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    name: ClassVar = "logistic_regression"
    architecture: ClassVar = {
        "dataset": ranges.Choice("breast_cancer", "digits", "iris_plants", "wine", 4, 32),
        "batch_size": ranges.Size(8, 128),
    }
    large: ClassVar = {"dataset": ranges.Choice(512, 1024)}

    _num_classes: ClassVar[int]

    num_classes: int = 5

    def __post_init__(self) -> None:
        check_integer("num_classes", self.num_classes, low=2)
        super().__post_init__()

    def synthetic_classes(self) -> int | None:
        return self.num_classes

    def answers(self, outputs: Tensor, seed: Tensor) -> Tensor:
        # The largest of logits with Gumbel noise is a draw from their softmax.
        gumbel = -tf.math.log(-tf.math.log(random.uniform(outputs.shape, seed)))
        return tf.argmax(outputs + gumbel, axis=-1, output_type=tf.int32)

    def with_noise(self, targets: Tensor, amount: Tensor, seeds: Sequence[Tensor]) -> Tensor:
        return noise.random_labels(targets, amount, self._num_classes, seeds)
