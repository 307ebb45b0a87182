"""What meta-training goes on from, without its inner problems: a small file.

A checkpoint also holds the state of every inner problem: tens of megabytes. This file holds
only theta, the outer optimizer's variables and the count of outer steps: some kilobytes. It
can be kept under version control. Another machine continues from it with new problems.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopt_keras.types import Array, Arrays
from meta import files

FILE = "outer_state.npz"
_THETA, _OPTIMIZER = "theta/", "optimizer/"
_NUMBERS = ("step", "seconds", "smoothed_loss")


def write(
    file: str, theta: Mapping[str, Any], optimizer: Sequence[Any], numbers: dict[str, float]
) -> None:
    """Writes a state to a temporary name, then renames it.

    Args:
        file: path.
        theta: dict from name to array.
        optimizer: list of arrays, the variables of the outer optimizer.
        numbers: dict with `step`, `seconds` and `smoothed_loss`.
    """
    arrays = {_THETA + name: value for name, value in theta.items()}
    arrays |= {f"{_OPTIMIZER}{i:04}": value for i, value in enumerate(optimizer)}
    with files.whole(file) as temporary, open(temporary, "wb") as f:
        np.savez(f, **arrays, **numbers)  # type: ignore[arg-type]


def read(file: str) -> tuple[Arrays, list[Array], dict[str, float]]:
    """`(theta, optimizer, numbers)`, as they were given to `write`.

    Raises:
        ValueError: if the file is missing or holds no such state; it names the file.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        numbers = {name: arrays[name].item() for name in _NUMBERS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file!r} holds no state of meta-training: {error}") from error
    theta = {k.removeprefix(_THETA): x for k, x in arrays.items() if k.startswith(_THETA)}
    return theta, [arrays[k] for k in sorted(arrays) if k.startswith(_OPTIMIZER)], numbers


def digest(file: str) -> str:
    """The file's sha256, hexadecimal."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
