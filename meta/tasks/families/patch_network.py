"""What classifiers share that see an image as a sequence of patches."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta.tasks import ranges
from meta.tasks.families.image_classification import ImageClassification
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class PatchNetwork(ImageClassification):
    """A classifier of images that consists of equal blocks on a sequence of patches.

    A dense layer makes a vector of each patch; after the blocks come a layer
    normalisation, the mean over patches and a dense layer.

    A subclass says what a block is: `block_shapes` and `block`.

    Args:
        patch_size: height and width of a patch, which divide those of the image.
        width: entries of a patch's vector.
        num_blocks: number of blocks.
        activation: any Keras activation by name, of the dense layers in the blocks.
        dataset, image_size, batch_size, init_scale, input_noise, label_noise, data_dir: as
            for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    architecture: ClassVar = {
        "dataset": ranges.Choice("digits", "patches"),
        "image_size": ranges.Choice(8),
        "patch_size": ranges.Choice(2, 4),
        "width": ranges.Size(8, 32),
        "num_blocks": ranges.Integer(1, 2),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 16),
    }
    large: ClassVar = {
        "image_size": ranges.Choice(16),
        "patch_size": ranges.Choice(4),
        "width": ranges.Size(64, 128),
        "num_blocks": ranges.Integer(2, 3),
    }

    patch_size: int = 2
    width: int = 16
    num_blocks: int = 1

    def __post_init__(self) -> None:
        for name in ("patch_size", "width", "num_blocks"):
            check_integer(name, getattr(self, name), low=1)
        super().__post_init__()

    @abc.abstractmethod
    def block_shapes(self, num_patches: int) -> list[tuple[int, ...]]:
        """The shapes of a block's weights, as `layers.init_weights` takes them."""

    @abc.abstractmethod
    def block(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        """A block's function `[P, B, patches, width]` -> the same shape.

        Args:
            x: the vectors.
            params: list of `[P, *shape]`: a pair for each of `block_shapes`.
        """

    def weight_shapes(self, image_shape: Sequence[int], num_classes: int) -> list[tuple[int, ...]]:
        height, width, channels = image_shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"`patch_size` must divide height and width of images, {height} and {width}. "
                f"Received: patch_size={self.patch_size}"
            )
        blocks = self.num_blocks * self.block_shapes(self.num_patches(image_shape))
        first = (self.patch_size**2 * channels, self.width)
        return [first, *blocks, (self.width,), (self.width, num_classes)]

    def num_patches(self, image_shape: Sequence[int]) -> int:
        """How many patches an image `(height, width, channels)` has."""
        return (image_shape[0] // self.patch_size) * (image_shape[1] // self.patch_size)

    def logits(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        return self.classified(params, self.embedded(params, images))

    def embedded(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        """The vectors of the patches, row by row: `[P, B, patches, width]`."""
        particles, examples, height, width, channels = images.shape
        size = self.patch_size
        cut = (particles, examples, height // size, size, width // size, size, channels)
        patches = tf.transpose(tf.reshape(images, cut), (0, 1, 2, 4, 3, 5, 6))
        flat = tf.reshape(patches, (particles, examples, -1, size * size * channels))
        return layers.dense(flat, *params[:2])

    def classified(self, params: Sequence[Tensor], x: Tensor) -> Tensor:
        """The logits `[P, B, classes]` of vectors `[P, B, patches, width]`."""
        blocks = params[2:-4]
        count = len(blocks) // self.num_blocks
        for start in range(0, len(blocks), count):
            x = self.block(x, blocks[start : start + count])
        x = layers.layer_norm(x, *params[-4:-2])
        return layers.dense(tf.reduce_mean(x, axis=2), *params[-2:])
