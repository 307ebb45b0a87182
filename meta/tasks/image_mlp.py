"""Image classification with a multilayer perceptron."""

import itertools

import numpy as np
import tensorflow as tf

from lopt_keras.rules.base import check_integer
from meta.tasks.image_classification import ImageClassification


class ImageMLP(ImageClassification):
    """An MLP classifier of the images of a dataset.

    Args:
        dataset: tensorflow-datasets name, or an `ImageDataset`.
        hidden_units: units of each hidden layer.
        activation, batch_size, data_dir: as for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(
        self, dataset="digits", hidden_units=(32,), activation="relu", batch_size=64, data_dir=None
    ):
        for units in hidden_units:
            check_integer("hidden_units", units, low=1)
        self._hidden_units = list(hidden_units)
        super().__init__(dataset, activation, batch_size, data_dir)

    def weight_shapes(self, image_shape, num_classes):
        sizes = [int(np.prod(image_shape)), *self._hidden_units, num_classes]
        return list(itertools.pairwise(sizes))

    def logits(self, params, images):
        x = tf.reshape(images, (*images.shape[:2], -1))
        for layer, (w, b) in enumerate(zip(params[::2], params[1::2], strict=True)):
            if layer:
                x = self.activation(x)
            x = tf.matmul(x, w) + b[:, None]
        return x

    def get_config(self):
        return {**super().get_config(), "hidden_units": self._hidden_units}
