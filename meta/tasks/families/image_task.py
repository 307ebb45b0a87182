"""What tasks on images share: data, batches, initial parameters."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import datasets, random
from meta.tasks import base, ranges
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTask(base.Task):
    """A problem on the images of a dataset, on random batches.

    Batches are drawn with replacement, inside the compiled program. Parameters are those
    of `layers.init_weights`, a pair for each layer.

    A subclass says what the network is, by `weight_shapes`, and what it does.

    Args:
        dataset: tensorflow-datasets name, or an `ImageDataset`.
        image_size: height and width to which images are resized; None for their own.
        activation: any Keras activation by name.
        batch_size: images in a batch.
        init_scale: multiplies the initial weights.
        input_noise: standard deviation of noise on the training images, which are
            standardised.
        data_dir: where the dataset is prepared; see `datasets.load`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "input_noise": ranges.Uniform(0.0, 0.5),
    }

    # Of the fields of an instance.
    _splits: ClassVar[dict[str, Any]]
    _num_classes: ClassVar[int]
    _image_shape: ClassVar[tuple[int, ...]]
    _weight_shapes: ClassVar[list[tuple[int, ...]]]

    dataset: Any = "digits"
    image_size: int | None = None
    activation: str = "relu"
    batch_size: int = 64
    init_scale: float = 1.0
    input_noise: float = 0.0
    data_dir: str | None = base.elsewhere()

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, low=1)
        if self.image_size is not None:
            check_integer("image_size", self.image_size, low=1)
        layers.activation(self.activation)
        super().__post_init__()
        dataset = self.dataset
        if isinstance(dataset, str):
            dataset = datasets.load(dataset, self.data_dir, self.image_size)
        splits = {
            name: tuple(tf.constant(array) for array in dataset.split(name))
            for name in datasets.SPLITS
        }
        object.__setattr__(self, "_splits", splits)
        object.__setattr__(self, "_num_classes", dataset.num_classes)
        object.__setattr__(self, "_image_shape", dataset.train.images.shape[1:])
        shapes = self.weight_shapes(self._image_shape, self._num_classes)
        object.__setattr__(self, "_weight_shapes", shapes)

    @abc.abstractmethod
    def weight_shapes(self, image_shape: Sequence[int], num_classes: int) -> list[tuple[int, ...]]:
        """The shape of each layer's weights, as `layers.init_weights` takes them.

        Args:
            image_shape: `(height, width, channels)`.
            num_classes: of the dataset.

        Raises:
            ValueError: if the network does not take such images.
        """

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        return layers.init_weights(seed, num, self._weight_shapes, setting["init_scale"])

    def examples(self, split: str, seed: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Random ones: images `[num, B, height, width, channels]` and labels `[num, B]`."""
        images, labels = self._splits[split]
        indices = random.integers((num, self.batch_size), seed, len(labels))
        return tf.gather(images, indices), tf.gather(labels, indices)
