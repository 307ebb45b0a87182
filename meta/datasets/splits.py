"""What every dataset's three splits are, and where missing ones come from."""

from collections.abc import Collection
from typing import Any

import numpy as np

from lopt_keras.types import Array

SPLITS = ("train", "validation", "test")
"""The names of the splits."""

_SEED = 0


def choose(dataset: Any, name: str) -> Any:
    """The split of that name of an `ImageDataset` or `TableDataset`.

    Raises:
        ValueError: if `name` is not one of `SPLITS`.
    """
    if name not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}. Received: split={name!r}")
    return getattr(dataset, name)


def partition(size: int, validation: int, test: int) -> dict[str, Array]:
    """Which examples of a bundled dataset belong to which split, the same on every machine.

    Args:
        size: number of examples.
        validation, test: how many of them are for these splits; the rest is for training.

    Returns:
        Dict from the name of each split to an array of indices, disjoint and in random order.
    """
    order = np.random.RandomState(_SEED).permutation(size)
    return {
        "train": order[validation + test :],
        "validation": order[:validation],
        "test": order[validation : validation + test],
    }


def expressions(available: Collection[str]) -> dict[str, str]:
    """The tensorflow-datasets split expression for each of `SPLITS`.

    Where there is no validation split, the last tenth of the training split serves;
    where there is no test split, the tenth before that.

    Args:
        available: names of the splits that the dataset has.
    """
    has_validation, has_test = "validation" in available, "test" in available
    end = 100 if has_validation else 90
    found = {"validation": "validation" if has_validation else "train[90%:]"}
    if has_test:
        found["test"] = "test"
    else:
        found["test"] = f"train[{end - 10}%:{end}%]"
        end -= 10
    found["train"] = f"train[:{end}%]"
    return found
