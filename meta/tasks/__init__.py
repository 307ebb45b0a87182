"""Tasks: the inner problems of meta-training, one family a file."""

from typing import Any

from meta.tasks.base import Task
from meta.tasks.families import FAMILIES
from meta.tasks.families.image_convnet import ImageConvnet
from meta.tasks.families.image_mlp import ImageMLP
from meta.tasks.from_keras import KerasTask, from_keras
from meta.tasks.sampling.distribution import SETS, Config, build, sample, sample_config

_TASKS = {**FAMILIES, "digits_mlp": ImageMLP, "patches_convnet": ImageConvnet}
NAMES = tuple(_TASKS)
"""The names that `get` knows: of the families, and of two of their tasks."""


def get(name: str, **config: Any) -> Task:
    """The task of that name.

    Args:
        name: one of `NAMES`.
        **config: its constructor's arguments. Those that are None, as flags that
            were not given, keep their defaults.

    Raises:
        ValueError: if no task bears the name, or its arguments do not fit it.
    """
    if name not in _TASKS:
        raise ValueError(f"`task` must be one of {NAMES}. Received: task={name!r}")
    config = {argument: value for argument, value in config.items() if value is not None}
    try:
        return _TASKS[name](**config)
    except TypeError as error:
        raise ValueError(f"The task {name!r} cannot be made from {config}: {error}") from error
