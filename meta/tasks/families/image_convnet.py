"""Image classification with a convolutional network."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta.tasks import ranges
from meta.tasks.families.image_classification import ImageClassification
from meta.tasks.networks import layers
from meta.tasks.networks.convolution import convolve

_KERNEL_SIZE = 3


@dataclasses.dataclass(frozen=True, eq=False)
class ImageConvnet(ImageClassification):
    """A convolutional classifier of the images of a dataset: by default six layers.

    3x3 convolutions with padding `"same"` and an activation after each, the mean
    over the image, a dense layer. The defaults are small, so that meta-training
    is possible on a few CPU cores: on the patches, 9188 parameters and 0.24
    million multiplications for an image.

    Args:
        filters: outputs of each convolution.
        strides: stride of each convolution, as many as `filters`.
        dataset, image_size, activation, batch_size, init_scale, input_noise,
            label_noise, data_dir: as for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the six-layer convnet task of Metz et al., arXiv 1810.10180; its size is ours.
    """

    name: ClassVar = "image_convnet"
    architecture: ClassVar = {
        "dataset": ranges.Choice("digits", "patches"),
        "image_size": ranges.Choice(8),
        "filters": ranges.Layers(2, 4, ranges.Size(4, 16)),
        "strides": ranges.Each("filters", ranges.Choice(1, 2)),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 32),
    }
    large: ClassVar = {
        "image_size": ranges.Choice(32),
        "filters": ranges.Layers(4, 5, ranges.Size(32, 32)),
    }

    dataset: Any = "patches"
    batch_size: int = 32
    filters: tuple[int, ...] = (8, 8, 16, 16, 32)
    strides: tuple[int, ...] = (2, 2, 1, 2, 1)

    def __post_init__(self) -> None:
        for outputs in self.filters:
            check_integer("filters", outputs, low=1)
        for stride in self.strides:
            check_integer("strides", stride, low=1)
        if not len(self.filters) == len(self.strides) >= 1:
            raise ValueError(
                "`filters` and `strides` must be equally long, with a value for each "
                f"convolution. Received: filters={self.filters}, strides={self.strides}"
            )
        super().__post_init__()

    def weight_shapes(self, image_shape: Sequence[int], num_classes: int) -> list[tuple[int, ...]]:
        channels = itertools.pairwise([image_shape[-1], *self.filters])
        window = (_KERNEL_SIZE, _KERNEL_SIZE)
        return [*((*window, *pair) for pair in channels), (self.filters[-1], num_classes)]

    def logits(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        *convolutions, dense, dense_bias = params
        nonlinearity = layers.activation(self.activation)
        x = tf.transpose(images, (0, 4, 2, 3, 1))
        for filters, bias, stride in zip(
            convolutions[::2], convolutions[1::2], self.strides, strict=True
        ):
            x = nonlinearity(convolve(x, filters, stride) + bias[:, :, None, None, None])
        means = tf.reduce_mean(x, axis=(2, 3))
        return tf.matmul(means, dense, transpose_a=True) + dense_bias[:, None]
