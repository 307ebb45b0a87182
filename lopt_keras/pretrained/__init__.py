"""The learned weights that ship with the package, one export a directory."""

import pathlib

_DIRECTORY = pathlib.Path(__file__).parent


def list_pretrained():
    """The names that `LearnedOptimizer(weights=...)` knows, sorted."""
    return sorted(file.parent.name for file in _DIRECTORY.glob("*/saved_model.pb"))


def path(name):
    """The export directory of shipped weights."""
    return _DIRECTORY / name
