"""Image classification with a multilayer perceptron."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta.tasks import ranges
from meta.tasks.families.image_classification import ImageClassification
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class ImageMLP(ImageClassification):
    """An MLP classifier of the images of a dataset.

    Args:
        hidden_units: units of each hidden layer.
        dataset, image_size, activation, batch_size, init_scale, input_noise,
            label_noise, data_dir: as for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    name: ClassVar = "image_mlp"
    architecture: ClassVar = {
        "dataset": ranges.Choice("digits", "patches"),
        "image_size": ranges.Choice(8),
        "hidden_units": ranges.Layers(1, 3, ranges.Size(8, 64)),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 128),
    }
    large: ClassVar = {"hidden_units": ranges.Layers(2, 3, ranges.Size(256, 512))}

    hidden_units: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        for units in self.hidden_units:
            check_integer("hidden_units", units, low=1)
        super().__post_init__()

    def weight_shapes(self, image_shape: Sequence[int], num_classes: int) -> list[tuple[int, ...]]:
        sizes = [int(np.prod(image_shape)), *self.hidden_units, num_classes]
        return list(itertools.pairwise(sizes))

    def logits(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        flat = tf.reshape(images, (*images.shape[:2], -1))
        return layers.mlp(flat, params, layers.activation(self.activation))
