"""Image classification with a convolutional network."""

import itertools

import tensorflow as tf

from lopt_keras.rules.base import check_integer
from meta.tasks.convolution import convolve
from meta.tasks.image_classification import ImageClassification

_KERNEL_SIZE = 3


class ImageConvnet(ImageClassification):
    """A convolutional classifier of the images of a dataset: by default six layers.

    3x3 convolutions with padding `"same"` and an activation after each, the mean
    over the image, a dense layer. The defaults are small, so that meta-training
    is possible on a few CPU cores: on the patches, 9188 parameters and 0.24
    million multiplications for an image.

    Args:
        dataset: tensorflow-datasets name, or an `ImageDataset`.
        filters: outputs of each convolution.
        strides: stride of each convolution, as many as `filters`.
        activation, batch_size, data_dir: as for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the six-layer convnet task of Metz et al., arXiv 1810.10180; its size is ours.
    """

    def __init__(
        self,
        dataset="patches",
        filters=(8, 8, 16, 16, 32),
        strides=(2, 2, 1, 2, 1),
        activation="relu",
        batch_size=32,
        data_dir=None,
    ):
        for outputs in filters:
            check_integer("filters", outputs, low=1)
        for stride in strides:
            check_integer("strides", stride, low=1)
        if not len(filters) == len(strides) >= 1:
            raise ValueError(
                "`filters` and `strides` must be equally long, with a value for each "
                f"convolution. Received: filters={filters}, strides={strides}"
            )
        self._filters, self._strides = list(filters), list(strides)
        super().__init__(dataset, activation, batch_size, data_dir)

    def weight_shapes(self, image_shape, num_classes):
        channels = itertools.pairwise([image_shape[-1], *self._filters])
        window = (_KERNEL_SIZE, _KERNEL_SIZE)
        return [*((*window, *pair) for pair in channels), (self._filters[-1], num_classes)]

    def logits(self, params, images):
        *convolutions, dense, dense_bias = params
        x = tf.transpose(images, (0, 4, 2, 3, 1))
        for filters, bias, stride in zip(
            convolutions[::2], convolutions[1::2], self._strides, strict=True
        ):
            x = self.activation(convolve(x, filters, stride) + bias[:, :, None, None, None])
        means = tf.reduce_mean(x, axis=(2, 3))
        return tf.matmul(means, dense, transpose_a=True) + dense_bias[:, None]

    def get_config(self):
        return {**super().get_config(), "filters": self._filters, "strides": self._strides}
