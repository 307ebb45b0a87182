"""Noise on training data, drawn anew in every batch."""

import tensorflow as tf

from meta import random
from meta.tasks import layers


def normal(x, stddev, seed):
    """Adds normal noise.

    Args:
        x: `[num, ...]`.
        stddev: `[num]`, its standard deviation.
        seed: `[2]`.
    """
    return x + layers.per_particle(stddev, x.shape.rank) * random.normal(x.shape, seed)


def random_labels(labels, share, num_classes, seeds):
    """Replaces labels by random ones, which may be the right ones.

    Args:
        labels: `[num, ...]` int32.
        share: `[num]`, the expected share of labels that are replaced.
        num_classes: Python int.
        seeds: two seeds.
    """
    replaced = random.uniform(labels.shape, seeds[0])
    replaced = replaced < layers.per_particle(share, labels.shape.rank)
    return tf.where(replaced, random.integers(labels.shape, seeds[1], num_classes), labels)
