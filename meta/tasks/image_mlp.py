"""Image classification with a multilayer perceptron."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.rules.base import check_integer
from meta import datasets, random
from meta.tasks import base


class ImageMLP(base.Task):
    """An MLP classifier of the images of a dataset, trained on random batches.

    Weights start Glorot-uniform, biases at zero, as Keras's `Dense` does.
    Batches are drawn with replacement, inside the compiled program.

    Args:
        dataset: tensorflow-datasets name, or an `ImageDataset`.
        hidden_units: units of each hidden layer.
        activation: any Keras activation by name.
        batch_size: images in a batch.
        data_dir: where the dataset is prepared; see `datasets.load`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(
        self, dataset="digits", hidden_units=(32,), activation="relu", batch_size=64, data_dir=None
    ):
        for units in hidden_units:
            check_integer("hidden_units", units, low=1)
        check_integer("batch_size", batch_size, low=1)
        self._activation = keras.activations.get(activation)
        if isinstance(dataset, str):
            dataset = datasets.load(dataset, data_dir)
        self._config = {
            "dataset": dataset.name,
            "hidden_units": list(hidden_units),
            "activation": activation,
            "batch_size": batch_size,
        }
        self._splits = {}
        for name in datasets.SPLITS:
            images, labels = dataset.split(name)
            images = images.reshape(len(images), -1)
            self._splits[name] = (tf.constant(images), tf.constant(labels))
        inputs = int(np.prod(dataset.train.images.shape[1:]))
        sizes = [inputs, *hidden_units, dataset.num_classes]
        self._shapes = list(itertools.pairwise(sizes))
        self._batch_size = batch_size

    def init(self, seed, num):
        params = []
        for layer, (fan_in, fan_out) in enumerate(self._shapes):
            limit = np.sqrt(6.0 / (fan_in + fan_out))
            layer_seed = random.fold_in(seed, layer)
            params.append(random.uniform((num, fan_in, fan_out), layer_seed, -limit, limit))
            params.append(tf.zeros((num, fan_out)))
        return params

    def batch(self, split, seed, num):
        images, labels = self._splits[split]
        indices = random.integers((num, self._batch_size), seed, len(labels))
        return tf.gather(images, indices), tf.gather(labels, indices)

    def loss(self, params, data):
        x, labels = data
        for layer, (w, b) in enumerate(zip(params[::2], params[1::2], strict=True)):
            if layer:
                x = self._activation(x)
            x = tf.matmul(x, w) + b[:, None]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, x)
        return tf.reduce_mean(losses, axis=1)

    def get_config(self):
        return dict(self._config)
