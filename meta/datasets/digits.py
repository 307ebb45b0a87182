"""scikit-learn's bundled handwritten digits."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lopt_keras.types import Array
from meta.datasets import splits

_HELD_OUT = {"validation": 300, "test": 300}


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's bundled 8x8 handwritten digits: 1797 images, 10 classes.

    The images' 17 grey levels are stretched over 0 to 255. The splits (1197
    train, 300 validation, 300 test) are disjoint and the same on every machine.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    pkg_dir_path = pathlib.Path(__file__).parent  # Where tfds looks for metadata files.

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype("uint8")
        return {
            name: self._generate_examples(images, labels, indices)
            for name, indices in splits.partition(len(images), **_HELD_OUT).items()
        }

    def _generate_examples(
        self, images: Array, labels: Array, indices: Array
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            yield int(index), {"image": images[index], "label": int(labels[index])}
