"""Preparing and reading datasets of tensorflow-datasets, whatever they hold."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from export import backend
from meta.datasets import splits


def find(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """The builder of that name.

    What a damaged description says of a dataset that was prepared is removed, with a warning.

    Args:
        name: that tensorflow-datasets knows.
        data_dir: where to prepare it; None for tensorflow-datasets' own directory
            (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).

    Raises:
        ValueError: if there is no such dataset.
    """
    try:
        _remove_damaged(name, data_dir)
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"`dataset` must be a name that tensorflow-datasets knows. Received: {name!r}"
        ) from error


def directory(data_dir: str | None = None) -> str:
    """Where datasets are prepared: `data_dir`, or tensorflow-datasets' own directory."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.path.expanduser(chosen)


def _remove_damaged(name: str, data_dir: str | None) -> None:
    """Removes what was prepared of a dataset and has a description that is no JSON."""
    folder = pathlib.Path(directory(data_dir), name.partition("/")[0].partition(":")[0])
    for file in list(folder.rglob("dataset_info.json")):
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            _warn_of_damage(name, file, error)
            shutil.rmtree(file.parent)


def _warn_of_damage(name: str, place: os.PathLike[str], error: Exception) -> None:
    what = f"The dataset {name!r} in '{place}'"
    warnings.warn(
        f"{what} is damaged, and is prepared anew: {backend.reason(error)}",
        stacklevel=3,
    )


def read(builder: tfds.core.DatasetBuilder, take: Callable[[Any], Any]) -> dict[str, Any]:
    """Prepares a dataset where that was not done before, and reads all of it.

    One that was prepared and is damaged is prepared anew, with a warning.

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
    _prepare(builder)
    try:
        return _read_splits(builder, take)
    except (tf.errors.OpError, KeyError) as error:
        _warn_of_damage(builder.name, builder.data_dir, error)
    _prepare(builder, tfds.GenerateMode.REUSE_CACHE_IF_EXISTS)
    return _read_splits(builder, take)


def _prepare(
    builder: tfds.core.DatasetBuilder, mode: Any = tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
) -> None:
    # Of what is bundled, there is no download to tell of.
    is_bundled = type(builder).__module__.startswith(__package__)
    told = contextlib.redirect_stdout(io.StringIO()) if is_bundled else contextlib.nullcontext()
    try:
        with told, _without_bars(is_bundled):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(download_mode=mode)
            )
    except Exception as error:  # Whatever the dataset's own download code raises.
        raise ValueError(
            f"The dataset {builder.name!r} cannot be prepared in {builder.data_dir!r}: {error!r}"
        ) from error


@contextlib.contextmanager
def _without_bars(whether: bool) -> Iterator[None]:
    if whether:
        tfds.disable_progress_bar()
    try:
        yield
    finally:
        if whether:
            tfds.enable_progress_bar()


def _read_splits(builder: tfds.core.DatasetBuilder, take: Callable[[Any], Any]) -> dict[str, Any]:
    expressions = splits.expressions(builder.info.splits)
    return {split: _read_split(builder, expressions[split], take) for split in splits.SPLITS}


def _read_split(builder: tfds.core.DatasetBuilder, split: str, take: Callable[[Any], Any]) -> Any:
    batches = builder.as_dataset(split=split, batch_size=1024, shuffle_files=False)
    taken = [take(batch) for batch in tfds.as_numpy(batches)]
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *taken)
