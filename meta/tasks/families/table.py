"""What models of tables share: data, initial parameters, loss."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import datasets, random
from meta.tasks import base
from meta.tasks.networks import layers

_NO_LAYERS: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class TableTask(base.Task):
    """Classification of the examples of a table, or regression, on random batches.

    Batches are drawn with replacement, inside the compiled program. The model is
    dense layers with an activation between them, of which there is one if there are no
    `hidden_units`; weights start Glorot-uniform, biases at zero, as Keras's `Dense` do.
    The loss of classes is the cross entropy.

    Args:
        dataset: tensorflow-datasets name, or a `TableDataset`.
        batch_size: examples in a batch.
        init_scale: multiplies the initial weights.
        data_dir: where the dataset is prepared; see `datasets.load_table`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    # Not annotated, these are no fields: models that have a choice make fields of them.
    hidden_units = _NO_LAYERS
    activation = "linear"
    regression_loss = "squared"

    # Of the fields of an instance.
    _splits: ClassVar[dict[str, Any]]
    _num_classes: ClassVar[int | None]
    _weight_shapes: ClassVar[list[tuple[int, ...]]]

    dataset: Any = "breast_cancer"
    batch_size: int = 32
    init_scale: float = 1.0
    data_dir: str | None = base.elsewhere()

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, low=1)
        for units in self.hidden_units:
            check_integer("hidden_units", units, low=1)
        layers.activation(self.activation)
        if self.regression_loss not in layers.REGRESSION_LOSSES:
            raise ValueError(
                f"`regression_loss` must be one of {tuple(layers.REGRESSION_LOSSES)}. "
                f"Received: regression_loss={self.regression_loss!r}"
            )
        super().__post_init__()
        num_inputs, num_classes = self.prepare()
        sizes = [num_inputs, *self.hidden_units, num_classes or 1]
        object.__setattr__(self, "_weight_shapes", list(itertools.pairwise(sizes)))
        object.__setattr__(self, "_num_classes", num_classes)

    def prepare(self) -> tuple[int, int | None]:
        """Makes the data ready: the number of columns, and of classes (None for regression)."""
        dataset = self.dataset
        if isinstance(dataset, str):
            dataset = datasets.load_table(dataset, self.data_dir)
        splits = {
            name: tuple(tf.constant(array) for array in dataset.split(name))
            for name in datasets.SPLITS
        }
        object.__setattr__(self, "_splits", splits)
        return splits["train"][0].shape[1], dataset.num_classes

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        return layers.init_weights(seed, num, self._weight_shapes, setting["init_scale"])

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        inputs, targets = self._splits[split]
        indices = random.integers((num, self.batch_size), seed, len(targets))
        return tf.gather(inputs, indices), tf.gather(targets, indices)

    def outputs(self, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Logits, or predictions: `[P, B, num_classes or 1]`.

        Args:
            params: list of `[P, *shape]`: weights and bias of each layer in turn.
            inputs: `[P, B, columns]`.
        """
        return layers.mlp(inputs, params, layers.activation(self.activation))

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        inputs, targets = data
        outputs = self.outputs(params, inputs)
        if self._num_classes is None:
            return layers.regression_loss(self.regression_loss, targets, outputs[..., 0])
        return layers.cross_entropy(targets, outputs)
