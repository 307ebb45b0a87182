"""Preparing and reading datasets of tensorflow-datasets, whatever they hold."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from meta.datasets import splits


def find(name, data_dir=None):
    """The builder of that name.

    Args:
        name: that tensorflow-datasets knows.
        data_dir: where to prepare it; None for tensorflow-datasets' own directory
            (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).

    Raises:
        ValueError: if there is no such dataset.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"`dataset` must be a name that tensorflow-datasets knows. Received: {name!r}"
        ) from error


def read(builder, take):
    """Prepares a dataset where that was not done before, and reads all of it.

    Args:
        builder: as `find` returned it.
        take: function from a batch of examples (nest of `[N, ...]` arrays) to what is
            wanted of it, a nest of such arrays.

    Returns:
        Dict from the name of each split to what was taken of all its examples, in the
        order in which they were prepared.

    Raises:
        ValueError: if the dataset cannot be prepared.
    """
    try:
        builder.download_and_prepare()
    except Exception as error:  # Whatever the dataset's own download code raises.
        raise ValueError(f"The dataset {builder.name!r} cannot be prepared: {error!r}") from error
    expressions = splits.expressions(builder.info.splits)
    return {split: _read_split(builder, expressions[split], take) for split in splits.SPLITS}


def _read_split(builder, split, take):
    batches = builder.as_dataset(split=split, batch_size=1024, shuffle_files=False)
    taken = [take(batch) for batch in tfds.as_numpy(batches)]
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *taken)
