"""The learned weights that ship with the package, one export a directory."""

import os
import pathlib

_DIRECTORY = pathlib.Path(__file__).parent


def list_pretrained() -> list[str]:
    """The names that `LearnedOptimizer(weights=...)` knows, sorted."""
    return sorted(file.parent.name for file in _DIRECTORY.glob("*/saved_model.pb"))


def path(name: str) -> pathlib.Path:
    """The export directory of shipped weights."""
    return _DIRECTORY / name


def find(weights: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The export directory of weights that ship, by their name; of others, the path that it is."""
    return path(weights) if weights in list_pretrained() else weights
