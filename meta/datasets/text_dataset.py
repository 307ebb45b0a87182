"""Text in memory, as indices of characters: one path for bundled and downloaded datasets."""

import functools
import string
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from lopt_keras.types import Array
from meta.datasets import preparing, splits

OTHER = "\N{REPLACEMENT CHARACTER}"
"""Stands for every character that is not in the alphabet."""

CHARACTERS = (
    OTHER,
    *" \n",
    *string.ascii_lowercase,
    *string.digits,
    *".,;:!?'\"()[]{}<>=+-*/_|#%",
)
"""The alphabet: 64 characters, the same for every dataset."""

_OTHER_INDEX = CHARACTERS.index(OTHER)
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\t": " "})


class TextDataset(NamedTuple):
    """A text dataset in memory.

    Attributes:
        name: the tensorflow-datasets name.
        characters: tuple of what the indices mean.
        train, validation, test: the texts of a split, one after the other with an empty
            line between them: `[N]` int32, indices into `characters`.
    """

    name: str
    characters: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def split(self, name: str) -> Array:
        """The text of the split of that name, one of `SPLITS`."""
        return splits.choose(self, name)


@functools.lru_cache(maxsize=8)
def load_text(name: str = "prose", data_dir: str | None = None) -> TextDataset:
    """A text dataset, prepared once into a directory, and read once.

    Splits that the dataset does not have are cut as for `load`. The whole text is held in
    memory, four bytes a character.

    Args:
        name: `"prose"`, which needs no download, or any name that tensorflow-datasets knows
            with a feature `text` (`"tiny_shakespeare"`, `"lm1b"`, ...).
        data_dir: where to prepare it, as for `load`.

    Returns:
        `TextDataset`.

    Raises:
        ValueError: if there is no such dataset, it cannot be downloaded, or it has no text.
    """
    builder = preparing.find(name, data_dir)
    _check_features(name, builder.info.features)
    texts = preparing.read(builder, lambda batch: batch["text"])
    return TextDataset(name, CHARACTERS, **{split: _joined(texts[split]) for split in texts})


def encode(text: str) -> Array:
    """Indices of a text's characters: int32 array, as long as the text.

    Capitals count as small letters; typographic quotes and dashes as plain ones.
    """
    known = {character: index for index, character in enumerate(CHARACTERS)}
    plain = text.translate(_PLAIN)
    # Letter by letter: the whole in lower case may be longer.
    return np.array([known.get(c.lower(), _OTHER_INDEX) for c in plain], np.int32)


def decode(indices: Iterable[int]) -> str:
    """The text of a sequence of indices."""
    return "".join(CHARACTERS[i] for i in indices)


def _joined(texts: Iterable[bytes]) -> Array:
    """Indices of the characters of all texts, UTF-8 bytes."""
    return encode("\n\n".join(text.decode("utf-8", errors="replace") for text in texts))


def _check_features(name: str, features: Any) -> None:
    has_text = hasattr(features, "keys") and "text" in features.keys()  # noqa: SIM118
    if not has_text or not isinstance(features["text"], tfds.features.Text):
        raise ValueError(
            f"`dataset` must have a feature 'text'. Received: {name!r} with {features}"
        )
