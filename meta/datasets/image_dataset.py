"""Labelled images in memory: one path for bundled and downloaded datasets."""

import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from lopt_keras.types import Array
from meta.datasets import preparing, splits


class ImageSplit(NamedTuple):
    """The images of one split.

    Attributes:
        images: `[N, height, width, channels]` float32, standardised with the mean
            and standard deviation of the whole training split.
        labels: `[N]` int32.
    """

    images: np.ndarray
    labels: np.ndarray


class ImageDataset(NamedTuple):
    """A labelled image dataset in memory.

    Attributes:
        name: the tensorflow-datasets name.
        num_classes: number of labels.
        train, validation, test: `ImageSplit`s, disjoint.
    """

    name: str
    num_classes: int
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit

    def split(self, name: str) -> ImageSplit:
        """The `ImageSplit` of that name, one of `SPLITS`."""
        return splits.choose(self, name)


@functools.lru_cache(maxsize=32)
def load(name: str, data_dir: str | None = None, size: int | None = None) -> ImageDataset:
    """A labelled image dataset, prepared once into a directory, and read once.

    Where the dataset has no validation split, the last tenth of its training
    split serves; where it has no test split, the tenth before that.

    Args:
        name: `"digits"` or `"patches"`, which need no download, or any name that
            tensorflow-datasets knows with features `image` and `label`
            (`"mnist"`, `"cifar10"`, ...).
        data_dir: where to prepare it. Defaults to tensorflow-datasets' own
            directory (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).
        size: height and width to which images are resized, by the mean over areas
            where that shrinks them; None to leave them as they are.

    Returns:
        `ImageDataset`.

    Raises:
        ValueError: if there is no such dataset, it cannot be downloaded, or it
            has no images of one shape with a label.
    """
    builder = preparing.find(name, data_dir)
    _check_features(name, builder.info.features)
    raw = preparing.read(builder, lambda batch: (_resized(batch["image"], size), batch["label"]))
    pixels = raw["train"][0].astype("float32")
    mean, std = pixels.mean(), pixels.std() + 1e-6
    parts = {
        split: ImageSplit(
            images=((images.astype("float32") - mean) / std).astype("float32"),
            labels=labels.astype("int32"),
        )
        for split, (images, labels) in raw.items()
    }
    return ImageDataset(name, builder.info.features["label"].num_classes, **parts)


def _resized(images: Array, size: int | None) -> Array:
    if size is None or images.shape[1:3] == (size, size):
        return images
    return tf.image.resize(images, (size, size), "area").numpy()


def _check_features(name: str, features: Any) -> None:
    has_both = hasattr(features, "keys") and {"image", "label"} <= set(features.keys())
    if (
        not has_both
        or not isinstance(features["label"], tfds.features.ClassLabel)
        or None in (features["image"].shape or (None,))
    ):
        raise ValueError(
            "`dataset` must have features 'image' (all of one shape) and 'label' (a class). "
            f"Received: {name!r} with {features}"
        )
