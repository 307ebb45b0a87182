"""What was computed before, on disk."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lopt_keras.types import Arrays


class Store:
    """A directory of results, each in a file of its own, by a key.

    A file is written under a temporary name and renamed: it is whole or not there. The name is
    the process's own, as several may share a directory.

    Args:
        directory: made if there is none.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, exist_ok=True)

    def load(self, key: Any) -> Arrays | None:
        """The arrays stored under a key: dict from name to array, or None.

        It warns of a file that is damaged.

        Args:
            key: what JSON can hold.
        """
        file, text = self._file(key)
        if not os.path.exists(file):
            return None
        try:
            with np.load(file) as content:
                arrays = dict(content)
            # Two keys of one file name are as good as impossible; an edited file is not.
            return arrays if arrays.pop("key").item() == text else None
        except Exception as error:  # Damaged archives raise many kinds.
            warnings.warn(
                f"The result {file!r} of an earlier run cannot be read, and is computed anew: "
                f"{error!r}",
                stacklevel=2,
            )
            return None

    def save(self, key: Any, arrays: Mapping[str, Any]) -> None:
        """Stores arrays, a dict from name to array, under a key."""
        file, text = self._file(key)
        temporary = f"{file}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as f:
                np.savez_compressed(f, key=text, **arrays)
            os.replace(temporary, file)
        except OSError as error:
            raise OSError(f"The result {file!r} cannot be written: {error}") from error

    def _file(self, key: Any) -> tuple[str, str]:
        text = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return os.path.join(self._directory, f"{name}.npz"), text
