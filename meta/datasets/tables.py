"""scikit-learn's bundled tables.

Its `linnerud` is not among them: it has 20 examples.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lopt_keras.types import Array
from meta.datasets import splits

_HELD_OUT_SHARE = 0.2


class BundledTable(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # tfds has no types.
    """A table that scikit-learn ships, as float32, not standardised.

    A fifth of the examples is for validation and a fifth for the test; the splits are
    disjoint and the same on every machine.

    A subclass says which table it is:

    Attributes:
        loader: name of the function of `sklearn.datasets` that reads it.
        homepage: where it is described.
        num_features: columns.
        num_classes: of its labels; None if the target is a number.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    pkg_dir_path = pathlib.Path(__file__).parent  # Where tfds looks for metadata files.

    loader = ""
    homepage = ""
    num_features = 0
    num_classes: int | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        target = tfds.features.Scalar(np.float32)
        if self.num_classes is not None:
            target = tfds.features.ClassLabel(num_classes=self.num_classes)
        features = tfds.features.Tensor(shape=(self.num_features,), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict({"features": features, self._target: target}),
            supervised_keys=("features", self._target),
        )

    @property
    def _target(self) -> str:
        return "target" if self.num_classes is None else "label"

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        import sklearn.datasets

        table, targets = getattr(sklearn.datasets, self.loader)(return_X_y=True)
        held_out = int(_HELD_OUT_SHARE * len(table))
        return {
            name: self._generate_examples(table, targets, indices)
            for name, indices in splits.partition(len(table), held_out, held_out).items()
        }

    def _generate_examples(
        self, table: Array, targets: Array, indices: Array
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            target = targets[index].astype("float32" if self.num_classes is None else "int64")
            features = table[index].astype("float32")
            yield int(index), {"features": features, self._target: target}


class BreastCancer(BundledTable):
    """Is a tumour benign? 569 examples of 30 measures of cell nuclei, 2 classes.

    343 examples are for training, 113 for validation and 113 for the test.
    """

    loader = "load_breast_cancer"
    homepage = "https://archive.ics.uci.edu/dataset/17"
    num_features = 30
    num_classes = 2


class Wine(BundledTable):
    """Which of three cultivars is a wine from? 178 examples of 13 measures.

    108 examples are for training, 35 for validation and 35 for the test.
    """

    loader = "load_wine"
    homepage = "https://archive.ics.uci.edu/dataset/109"
    num_features = 13
    num_classes = 3


class IrisPlants(BundledTable):
    """Which of three irises is it? 150 examples of 4 lengths of leaves.

    90 examples are for training, 30 for validation and 30 for the test.
    tensorflow-datasets has a set "iris" of its own, which it downloads.
    """

    loader = "load_iris"
    homepage = "https://archive.ics.uci.edu/dataset/53"
    num_features = 4
    num_classes = 3


class Diabetes(BundledTable):
    """How far has a disease progressed in a year? 442 patients, 10 measures, a number.

    266 examples are for training, 88 for validation and 88 for the test.
    """

    loader = "load_diabetes"
    homepage = "https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html"
    num_features = 10
