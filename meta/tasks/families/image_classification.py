"""What the classifiers of images share: noise on labels, loss."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lopt_keras.types import Tensor
from meta import random
from meta.tasks import ranges
from meta.tasks.families import noise
from meta.tasks.families.image_task import ImageTask
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class ImageClassification(ImageTask):
    """Classification of the images of a dataset, by cross entropy.

    A subclass says what the network is: `weight_shapes` and `logits`.

    Args:
        label_noise: fraction of training labels that are drawn at random, in each batch anew.
        dataset, image_size, activation, batch_size, init_scale, input_noise, data_dir: as
            for `ImageTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    setting: ClassVar = {**ImageTask.setting, "label_noise": ranges.Uniform(0.0, 0.3)}

    label_noise: float = 0.0

    @abc.abstractmethod
    def logits(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        """The outputs of each particle's network.

        Args:
            params: list of `[P, *shape]`: weights and bias of each layer in turn.
            images: `[P, B, height, width, channels]`.

        Returns:
            `[P, B, num_classes]`.
        """

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        images, labels = self.examples(split, seed, num)
        if split != "train":
            return images, labels
        seeds = random.split(seed, 3)
        images = noise.normal(images, setting["input_noise"], seeds[0])
        fraction = setting["label_noise"]
        return images, noise.random_labels(labels, fraction, self._num_classes, seeds[1:])

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        images, labels = data
        return layers.cross_entropy(labels, self.logits(params, images))
