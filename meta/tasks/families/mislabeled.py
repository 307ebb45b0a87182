"""Classification of examples some of whose training labels are wrong."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import datasets, random
from meta.tasks import ranges
from meta.tasks.families.table import TableTask
from meta.tasks.families.two_moons import draw_points
from meta.tasks.networks import layers

_MOON_POINTS = 500
_MOON_NOISE = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Mislabeled(TableTask):
    """An MLP classifier whose training labels are flipped with known rates.

    In every problem each training example has one label for good, the wrong one with
    a probability that depends on its class only: `r0` for the first class, `r1` for the last,
    and on the line between for the others; all wrong labels are equally probable. (These
    are the `label_noise.transitions`.) Validation and test labels are right, so that to
    meta-train on validation loss is to learn not to fit wrong labels.

    Args:
        dataset: tensorflow-datasets name of a table (images are tables too), a
            `TableDataset`, or "two_moons", which are 500 points for each split, the same
            in all problems.
        hidden_units: units of each hidden layer.
        activation: any Keras activation by name.
        r0, r1: flip rates.
        batch_size, init_scale, data_dir: as for `TableTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Gish et al., arXiv 1909.09136; more than two classes and the moons are ours.
    """

    name: ClassVar = "mislabeled"
    architecture: ClassVar = {
        "dataset": ranges.Choice("breast_cancer", "digits", "two_moons", "wine"),
        "hidden_units": ranges.Layers(1, 2, ranges.Size(8, 32)),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 64),
    }
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "r0": ranges.Uniform(0.0, 0.4),
        "r1": ranges.Uniform(0.0, 0.4),
    }
    large: ClassVar = {"hidden_units": ranges.Layers(2, 3, ranges.Size(128, 256))}

    _num_classes: ClassVar[int]

    hidden_units: tuple[int, ...] = (16,)
    activation: str = "relu"
    r0: float = 0.2
    r1: float = 0.2

    def __post_init__(self) -> None:
        for name in ("r0", "r1"):
            rates = np.ravel(np.asarray(getattr(self, name)))
            if not ((rates >= 0) & (rates < 1)).all():
                raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={rates.tolist()}")
        super().__post_init__()
        if self._num_classes is None:
            raise ValueError(
                f"`dataset` must have classes as target. Received: dataset={self.dataset!r}"
            )

    def prepare(self) -> tuple[int, int | None]:
        if not isinstance(self.dataset, str) or self.dataset != "two_moons":
            return super().prepare()
        object.__setattr__(self, "_splits", _moons())
        return 2, 2

    def draw(self, seed: Tensor, num: int, variant: Tensor | None = None) -> dict[str, Any]:
        setting = super().draw(seed, num, variant)
        labels = self._splits["train"][1]
        noisy = flip(labels, setting["r0"], setting["r1"], self._num_classes, seed)
        return {**setting, "train_labels": noisy}

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        inputs, labels = self._splits[split]
        indices = random.integers((num, self.batch_size), seed, len(labels))
        if split == "train":
            labels = tf.gather(setting["train_labels"], indices, batch_dims=1)
        else:
            labels = tf.gather(labels, indices)
        return tf.gather(inputs, indices), labels


def flip(labels: Tensor, r0: Tensor, r1: Tensor, num_classes: int, seed: Tensor) -> Tensor:
    """Labels of which some are wrong, for each of several problems.

    Args:
        labels: `[N]` int32.
        r0, r1: `[num]`, flip rates, as for `Mislabeled`.
        num_classes: K, a Python int.
        seed: `[2]`.

    Returns:
        `[num, N]` int32.
    """
    seeds = random.split(seed, 2)
    shape = (r0.shape[0], labels.shape[0])
    fraction = tf.cast(labels, tf.float32) / (num_classes - 1)
    rates = r0[:, None] + (r1 - r0)[:, None] * fraction
    other = 1 + random.integers(shape, seeds[0], num_classes - 1)
    wrong = (labels + other) % num_classes
    return tf.where(random.uniform(shape, seeds[1]) < rates, wrong, labels)


def _moons() -> dict[str, tuple[Tensor, Tensor]]:
    """Splits of points that are the same in all problems: dict of `[N, 2]` and `[N]`."""
    splits = {}
    for i, split in enumerate(datasets.SPLITS):
        shape = (1, _MOON_POINTS)
        points, labels = draw_points(random.seed(i), shape, tf.constant([_MOON_NOISE]), tf.zeros(1))
        splits[split] = points[0], labels[0]
    return splits
