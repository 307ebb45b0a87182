"""What the classifiers of images share: data, initial parameters, loss."""

import abc

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.rules.base import check_integer
from meta import datasets, random
from meta.tasks import base


class ImageClassification(base.Task):
    """Classification of the images of a dataset, on random batches.

    Batches are drawn with replacement, inside the compiled program. Parameters
    are a weight and a bias for each layer; weights start Glorot-uniform, biases
    at zero, as Keras's `Dense` and `Conv2D` do.

    A subclass says what the network is: `weight_shapes` and `logits`.

    Args:
        dataset: tensorflow-datasets name, or an `ImageDataset`.
        activation: any Keras activation by name.
        batch_size: images in a batch.
        data_dir: where the dataset is prepared; see `datasets.load`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(self, dataset, activation, batch_size, data_dir=None):
        check_integer("batch_size", batch_size, low=1)
        self.activation = keras.activations.get(activation)
        if isinstance(dataset, str):
            dataset = datasets.load(dataset, data_dir)
        self._config = {
            "dataset": dataset.name,
            "activation": activation,
            "batch_size": batch_size,
        }
        self._splits = {
            name: tuple(tf.constant(array) for array in dataset.split(name))
            for name in datasets.SPLITS
        }
        self._weight_shapes = self.weight_shapes(
            dataset.train.images.shape[1:], dataset.num_classes
        )

    @abc.abstractmethod
    def weight_shapes(self, image_shape, num_classes):
        """The shape of each layer's weights, input and output units last.

        Args:
            image_shape: `(height, width, channels)`.
            num_classes: outputs of the last layer.
        """

    @abc.abstractmethod
    def logits(self, params, images):
        """The outputs of each particle's network.

        Args:
            params: list of `[P, *shape]`: weights and bias of each layer in turn.
            images: `[P, B, height, width, channels]`.

        Returns:
            `[P, B, num_classes]`.
        """

    def init(self, seed, num):
        params = []
        for layer, shape in enumerate(self._weight_shapes):
            *window, inputs, outputs = shape
            limit = np.sqrt(6.0 / (np.prod(window) * (inputs + outputs)))
            layer_seed = random.fold_in(seed, layer)
            params.append(random.uniform((num, *shape), layer_seed, -limit, limit))
            params.append(tf.zeros((num, outputs)))
        return params

    def batch(self, split, seed, num):
        images, labels = self._splits[split]
        indices = random.integers((num, self._config["batch_size"]), seed, len(labels))
        return tf.gather(images, indices), tf.gather(labels, indices)

    def loss(self, params, data):
        images, labels = data
        logits = self.logits(params, images)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_mean(losses, axis=1)

    def get_config(self):
        return dict(self._config)
