"""Labelled images in memory: one path for bundled and downloaded datasets."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

SPLITS = ("train", "validation", "test")


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

    def split(self, name):
        """The split of that name, one of `SPLITS`."""
        if name not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}. Received: split={name!r}")
        return getattr(self, name)


@functools.lru_cache(maxsize=32)
def load(name, data_dir=None, size=None):
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
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"`dataset` must be a name that tensorflow-datasets knows. Received: {name!r}"
        ) from error
    _check_features(name, builder.info.features)
    try:
        builder.download_and_prepare()
    except Exception as error:  # Whatever the dataset's own download code raises.
        raise ValueError(f"The dataset {name!r} cannot be prepared: {error!r}") from error
    ranges = _split_ranges(builder.info.splits)
    raw = {split: _read(builder, ranges[split], size) for split in SPLITS}
    pixels = raw["train"][0].astype("float32")
    mean, std = pixels.mean(), pixels.std() + 1e-6
    splits = {
        split: ImageSplit(
            images=((images.astype("float32") - mean) / std).astype("float32"),
            labels=labels.astype("int32"),
        )
        for split, (images, labels) in raw.items()
    }
    return ImageDataset(name, builder.info.features["label"].num_classes, **splits)


def _read(builder, split, size):
    """All images and labels of a split, in the order in which they were prepared."""
    batches = builder.as_dataset(split=split, batch_size=1024, shuffle_files=False)
    images, labels = zip(*((b["image"], b["label"]) for b in tfds.as_numpy(batches)), strict=True)
    images, labels = np.concatenate(images), np.concatenate(labels)
    if size is not None and images.shape[1:3] != (size, size):
        images = tf.image.resize(images, (size, size), "area").numpy()
    return images, labels


def _check_features(name, features):
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


def _split_ranges(available):
    """The tensorflow-datasets split expression for each of `SPLITS`."""
    has_validation, has_test = "validation" in available, "test" in available
    end = 100 if has_validation else 90
    ranges = {"validation": "validation" if has_validation else "train[90%:]"}
    if has_test:
        ranges["test"] = "test"
    else:
        ranges["test"] = f"train[{end - 10}%:{end}%]"
        end -= 10
    ranges["train"] = f"train[:{end}%]"
    return ranges
