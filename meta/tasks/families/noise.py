"""Noise on training data, drawn anew in every batch."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random
from meta.tasks.networks import layers

_POOL = 2048


def normal(x: Tensor, stddev: Tensor, seed: Tensor) -> Tensor:
    """Adds normal noise to examples.

    Each example gets one of 2048 noises that were drawn once: to draw every number anew
    would take longer than an inner step of a small network.

    Args:
        x: `[num, B, *shape]`.
        stddev: `[num]`, its standard deviation.
        seed: `[2]`.
    """
    pool = _pool(tuple(x.shape[2:]))
    chosen = tf.gather(pool, random.integers(x.shape[:2], seed, _POOL))
    return x + layers.per_particle(stddev, x.shape.rank) * chosen


def random_labels(
    labels: Tensor, fraction: Tensor, num_classes: int, seeds: Sequence[Tensor]
) -> Tensor:
    """Replaces labels by random ones, which may be the right ones.

    Args:
        labels: `[num, ...]` int32.
        fraction: `[num]`, the expected fraction of labels that are replaced.
        num_classes: Python int.
        seeds: two seeds.
    """
    replaced = random.uniform(labels.shape, seeds[0])
    replaced = replaced < layers.per_particle(fraction, labels.shape.rank)
    return tf.where(replaced, random.integers(labels.shape, seeds[1], num_classes), labels)


@functools.cache
def _pool(shape: Sequence[int]) -> Tensor:
    """`[2048, *shape]` standard normal numbers, the same on every machine."""
    # As a tensor of its own, not part of the graph that asks first.
    with tf.init_scope():
        return tf.constant(np.random.RandomState(0).standard_normal((_POOL, *shape)), tf.float32)
