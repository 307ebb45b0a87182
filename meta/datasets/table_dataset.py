"""Tables of numbers with a target, in memory: one path for bundled and downloaded datasets."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from lopt_keras.types import Array
from meta.datasets import preparing, splits


class TableSplit(NamedTuple):
    """The examples of one split.

    Attributes:
        inputs: `[N, features]` float32, each column standardised with its mean and
            standard deviation over the training split; zero where a column is constant
            there.
        targets: `[N]`: int32 labels, or float32 numbers, standardised likewise.
    """

    inputs: np.ndarray
    targets: np.ndarray


class TableDataset(NamedTuple):
    """A table in memory, for classification or regression.

    Attributes:
        name: the tensorflow-datasets name.
        num_classes: number of labels; None if the target is a number.
        train, validation, test: `TableSplit`s, disjoint.
    """

    name: str
    num_classes: Any
    train: TableSplit
    validation: TableSplit
    test: TableSplit

    def split(self, name: str) -> TableSplit:
        """The `TableSplit` of that name, one of `SPLITS`."""
        return splits.choose(self, name)


@functools.lru_cache(maxsize=32)
def load_table(name: str, data_dir: str | None = None) -> TableDataset:
    """A table, prepared once into a directory, and read once.

    What is input and what is target, the dataset's `supervised_keys` say. The inputs are
    all columns of the one, in alphabetical order if they have names. The target is a
    class or a number. Missing splits are cut as for `load`. Images are tables too.

    Args:
        name: `"breast_cancer"`, `"wine"`, `"iris_plants"` (classes) or `"diabetes"` (a
            number), which need no download, or any name that tensorflow-datasets knows
            with inputs that are numbers, and as many of them in every example.
        data_dir: where to prepare it, as for `load`.

    Returns:
        `TableDataset`.

    Raises:
        ValueError: if there is no such dataset, it cannot be downloaded, or it is no
            table of numbers with one class or one number as its target.
    """
    builder = preparing.find(name, data_dir)
    inputs, target = _keys(name, builder.info)
    raw = preparing.read(builder, lambda batch: (_columns(batch[inputs]), batch[target]))
    num_classes = getattr(builder.info.features[target], "num_classes", None)
    train_inputs, train_targets = raw["train"]
    standardise = _standardiser(train_inputs)
    if num_classes is None:
        take = _standardiser(train_targets)
    else:
        take = functools.partial(np.asarray, dtype="int32")
    parts = {s: TableSplit(standardise(x), take(y)) for s, (x, y) in raw.items()}
    return TableDataset(name, num_classes, **parts)


def _columns(nest: Any) -> Array:
    """`[N, features]` from an array or a dict of arrays, `[N, ...]`."""
    arrays = [nest[key] for key in sorted(nest)] if isinstance(nest, dict) else [nest]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _standardiser(train: Array) -> Callable[[Array], Array]:
    """The function that standardises the columns of an array as those of `train`."""
    mean, std = train.mean(axis=0, dtype="float64"), train.std(axis=0, dtype="float64")
    scale = 1.0 / np.where(std > 0.0, std, np.inf)
    return lambda x: ((x - mean) * scale).astype("float32")


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The names of the features that are inputs and target; raises if they do not fit."""
    keys: tuple[Any, ...] = info.supervised_keys or ()
    if len(keys) == 2 and all(isinstance(key, str) for key in keys):
        inputs, target = (info.features[key] for key in keys)
        columns = [inputs[key] for key in inputs] if hasattr(inputs, "keys") else [inputs]
        if _is_number(target) and target.shape == () and all(map(_is_quantity, columns)):
            return keys[0], keys[1]
    raise ValueError(
        "`dataset` must have supervised keys: inputs, which are numbers and as many in every "
        f"example, and a target, which is a class or a number. Received: {name!r} with "
        f"supervised keys {keys} and {info.features}"
    )


def _is_quantity(feature: Any) -> bool:
    """Whether a feature is numbers of a known shape that are more or less, as classes are not."""
    return _is_number(feature) and not isinstance(feature, tfds.features.ClassLabel)


def _is_number(feature: Any) -> bool:
    if isinstance(feature, tfds.features.FeaturesDict) or None in feature.shape:
        return False
    return np.issubdtype(feature.np_dtype, np.number)
