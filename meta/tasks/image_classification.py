"""What the classifiers of images share: data, initial parameters, loss."""

import abc
import dataclasses
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.rules.base import check_integer
from meta import datasets, random
from meta.tasks import base, layers, noise, ranges


@dataclasses.dataclass(frozen=True, eq=False)
class ImageClassification(base.Task):
    """Classification of the images of a dataset, on random batches.

    Batches are drawn with replacement, inside the compiled program. Parameters
    are a weight and a bias for each layer; weights start Glorot-uniform, biases
    at zero, as Keras's `Dense` and `Conv2D` do.

    A subclass says what the network is: `weight_shapes` and `logits`.

    Args:
        dataset: tensorflow-datasets name, or an `ImageDataset`.
        image_size: height and width to which images are resized; None for their own.
        activation: any Keras activation by name.
        batch_size: images in a batch.
        init_scale: multiplies the initial weights.
        input_noise: standard deviation of noise on the training images, which are
            standardised.
        label_noise: share of training labels that are drawn at random, in each batch anew.
        data_dir: where the dataset is prepared; see `datasets.load`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "input_noise": ranges.Uniform(0.0, 0.5),
        "label_noise": ranges.Uniform(0.0, 0.3),
    }

    dataset: Any = "digits"
    image_size: int | None = None
    activation: str = "relu"
    batch_size: int = 64
    init_scale: float = 1.0
    input_noise: float = 0.0
    label_noise: float = 0.0
    data_dir: str | None = base.elsewhere()

    def __post_init__(self):
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
        shapes = self.weight_shapes(dataset.train.images.shape[1:], dataset.num_classes)
        object.__setattr__(self, "_weight_shapes", shapes)

    @abc.abstractmethod
    def weight_shapes(self, image_shape, num_classes):
        """The shape of each layer's weights, input and output units last.

        Args:
            image_shape: `(height, width, channels)`.
            num_classes: outputs of the last layer.
        """

    @abc.abstractmethod
    def logits(self, params, images):
        """The outputs of each particle's network.

        Args:
            params: list of `[P, *shape]`: weights and bias of each layer in turn.
            images: `[P, B, height, width, channels]`.

        Returns:
            `[P, B, num_classes]`.
        """

    def init(self, seed, num, setting):
        return layers.init_weights(seed, num, self._weight_shapes, setting["init_scale"])

    def batch(self, split, seed, num, setting):
        images, labels = self._splits[split]
        shape = (num, self.batch_size)
        indices = random.integers(shape, seed, len(labels))
        images, labels = tf.gather(images, indices), tf.gather(labels, indices)
        if split != "train":
            return images, labels
        seeds = [random.fold_in(seed, i) for i in range(3)]
        images = noise.normal(images, setting["input_noise"], seeds[0])
        share = setting["label_noise"]
        return images, noise.random_labels(labels, share, self._num_classes, seeds[1:])

    def loss(self, params, data, setting):
        images, labels = data
        return layers.cross_entropy(labels, self.logits(params, images))
