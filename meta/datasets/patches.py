"""Patches of scikit-image's bundled photographs."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lopt_keras.types import Array

PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "brick": "brick",
    "camera": "camera",
    "cat": "cat",
    "coffee": "coffee",
    "coins": "coins",
    "grass": "grass",
    "gravel": "gravel",
    "moon": "moon",
    "motorcycle": "stereo_motorcycle",
    "page": "page",
    "tissue": "immunohistochemistry",
}
"""The classes, and the function of `skimage.data` that reads each photograph.

Those that ship in scikit-image's wheel as PNG: what a JPEG decodes to depends on
the decoder's version.
"""

_PATCH, _TILE = 32, 48
_HELD_OUT_SHARE = 0.2
_PATCHES_PER_CLASS = {"train": 1000, "validation": 250, "test": 250}
_LUMA = (299, 587, 114)
_BRIGHTNESS, _CONTRAST = (96.0, 160.0), (16.0, 48.0)
_SMALLEST_STD = 0.5
_SEED = 0


class Patches(tfds.core.GeneratorBasedBuilder):
    """Which of 12 photographs of scikit-image was a grey 32x32 patch cut from?

    Each photograph is divided into tiles of 48x48 pixels; a fifth of its tiles, at
    random, is for validation and another for the test. Patches lie within a tile,
    at random offsets, so that no two splits share a pixel; patches of one split
    overlap. Each class has 1000 patches for training, 250 for validation and 250
    for the test, the same on every machine.

    Texture and shape must tell the classes apart: patches are grey, as seven of the
    photographs are, turned or mirrored at random, and of random brightness and
    contrast: `b + c (x - mean) / (std + 0.5)`, clipped, with b uniform in [96, 160]
    and c in [16, 48] grey levels.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    pkg_dir_path = pathlib.Path(__file__).parent  # Where tfds looks for metadata files.

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_PATCH, _PATCH, 1)),
                    "label": tfds.features.ClassLabel(names=list(PHOTOGRAPHS)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in _PATCHES_PER_CLASS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for label, name in enumerate(PHOTOGRAPHS):
            photograph = read_photograph(name)
            for i, corner in enumerate(corners(photograph.shape, split, label)):
                seed = (_SEED, label, *corner)
                patch = disguise(cut(photograph, corner), np.random.RandomState(seed))
                yield f"{name}_{i}", {"image": patch[..., None], "label": label}


def read_photograph(name: str) -> Array:
    """The photograph of a class in grey: `[height, width]` float64, 0 to 255."""
    import skimage.data

    pixels = getattr(skimage.data, PHOTOGRAPHS[name])()
    if isinstance(pixels, tuple):  # Of the stereo pair, the left one.
        pixels = pixels[0]
    if pixels.ndim == 2:
        return pixels.astype("float64")
    return pixels.astype("int64") @ _LUMA / 1000  # Integers add up the same everywhere.


def corners(shape: Sequence[int], split: str, label: int) -> Array:
    """Where the patches of one class and split have their upper left pixels.

    Args:
        shape: `(height, width)` of the photograph.
        split: "train", "validation" or "test".
        label: of the class; the tiles' split depends on it and on nothing else.

    Returns:
        `[N, 2]` integers, row and column, all different.
    """
    rng = np.random.RandomState((_SEED, label))
    rows, columns = (np.arange(0, size - _TILE + 1, _TILE) for size in shape)
    tiles = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    tiles = rng.permutation(tiles)
    held_out = int(_HELD_OUT_SHARE * len(tiles))
    own = {
        "train": tiles[2 * held_out :],
        "validation": tiles[:held_out],
        "test": tiles[held_out : 2 * held_out],
    }[split]
    offsets = np.moveaxis(np.indices((_TILE - _PATCH + 1,) * 2), 0, -1).reshape(-1, 2)
    candidates = (own[:, None] + offsets).reshape(-1, 2)
    return rng.permutation(candidates)[: _PATCHES_PER_CLASS[split]]


def cut(photograph: Array, corner: Sequence[int]) -> Array:
    """The patch whose upper left pixel is there: `[32, 32]`."""
    row, column = corner
    return photograph[row : row + _PATCH, column : column + _PATCH]


def disguise(patch: Array, rng: np.random.RandomState) -> Array:
    """The patch in random brightness and contrast, and one of its 8 symmetries: uint8."""
    patch = (patch - patch.mean()) / (patch.std() + _SMALLEST_STD)
    patch = rng.uniform(*_BRIGHTNESS) + rng.uniform(*_CONTRAST) * patch
    patch = np.rot90(patch, rng.randint(4))
    if rng.randint(2):
        patch = patch.T
    return np.clip(np.round(patch), 0, 255).astype("uint8")
