"""Small inner problems for the tests."""

import numpy as np
import tensorflow as tf

from meta import datasets, random
from meta.tasks import ImageConvnet, ImageMLP, Task


class Quadratic(Task):
    """`0.5 curvature x^2` from x = 1: with SGD, the losses have a closed form."""

    curvature = 2.0

    def init(self, seed, num, setting):
        return [tf.ones((num, 1))]

    def batch(self, split, seed, num, setting):
        return tf.zeros(num)

    def loss(self, params, data, setting):
        return 0.5 * self.curvature * tf.reduce_sum(tf.square(params[0]), axis=1)


class Noise(Task):
    """A loss that nothing can lower: the sum of start value and batch."""

    def init(self, seed, num, setting):
        return [random.normal((num, 3), seed)]

    def batch(self, split, seed, num, setting):
        shift = {"train": 0.0, "validation": 1.0, "test": 2.0}[split]
        return random.normal((num,), seed) + shift

    def loss(self, params, data, setting):
        return tf.reduce_sum(tf.stop_gradient(params[0]), axis=1) + data + 0.0 * params[0][:, 0]


def random_images(shape=(3, 3, 1)):
    """A dataset of random images in two classes."""
    rng = np.random.RandomState(0)

    def split(size):
        labels = rng.randint(0, 2, size).astype("int32")
        images = rng.standard_normal((size, *shape)) + labels[:, None, None, None]
        return datasets.ImageSplit(images.astype("float32"), labels)

    return datasets.ImageDataset("random", 2, split(60), split(30), split(30))


def random_table(num_classes):
    """A table whose target is linear in its three columns, or one of some classes."""
    rng = np.random.RandomState(0)

    def split(size):
        inputs = rng.standard_normal((size, 3)).astype("float32")
        targets = inputs @ np.float32([1.0, -2.0, 0.5]) + rng.standard_normal(size)
        if num_classes:
            targets = np.digitize(targets, [-1.0, 1.0][: num_classes - 1])
        return datasets.TableSplit(inputs, targets.astype("int32" if num_classes else "float32"))

    return datasets.TableDataset("random", num_classes, split(40), split(20), split(20))


def loss_and_gradient(task, params, data, setting=None):
    """`[P]` and a list of `[P, *shape]`."""
    with tf.GradientTape() as tape:
        tape.watch(params)
        loss = task.loss(params, data, setting)
    return loss, tape.gradient(loss, params)


def small_mlp(**kwargs):
    return ImageMLP(random_images(), hidden_units=(4,), batch_size=8, **kwargs)


def small_convnet(**kwargs):
    """Three layers, and every kind of padding: of both sides, of one, and none."""
    config = {"filters": (3, 4), "strides": (1, 2), "batch_size": 8, **kwargs}
    return ImageConvnet(random_images((6, 7, 2)), **config)
