"""Autoencoders of images: dense and convolutional."""

import abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import ranges
from meta.tasks.families import noise
from meta.tasks.families.image_task import ImageTask
from meta.tasks.networks import layers
from meta.tasks.networks.convolution import convolve, upsample

LIKELIHOODS = ("gaussian", "bernoulli")
"""What images may be compared by."""

_KERNEL_SIZE = 3


@dataclasses.dataclass(frozen=True, eq=False)
class ImageReconstruction(ImageTask):
    """Reconstruction of the images of a dataset; the target is without the noise.

    The loss is the negative logarithm of a likelihood, the mean over pixels:

    - `"gaussian"`: half the squared error of the standardised image, which is a Gaussian of
      variance 1, but for a constant;
    - `"bernoulli"`: the cross entropy of pixels between 0 and 1, of which the outputs are
      logits. 0 and 1 are the darkest and the brightest pixel of the training images.

    A subclass says what the network is: `weight_shapes` and `outputs`.

    Args:
        likelihood: one of `LIKELIHOODS`.
        dataset, image_size, activation, batch_size, init_scale, input_noise, data_dir: as
            for `ImageTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: with noise, Vincent et al., "Extracting and Composing Robust Features with
    Denoising Autoencoders", ICML 2008.
    """

    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 2.0),
        "input_noise": ranges.Uniform(0.0, 1.0),
    }
    loss_clip: ClassVar = 30.0
    # Of the fields of an instance.
    _darkest: ClassVar[Tensor]
    _brightest: ClassVar[Tensor]

    likelihood: str = "gaussian"

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"`likelihood` must be one of {LIKELIHOODS}. "
                f"Received: likelihood={self.likelihood!r}"
            )
        super().__post_init__()
        train, _ = self._splits["train"]
        object.__setattr__(self, "_darkest", tf.reduce_min(train))
        object.__setattr__(self, "_brightest", tf.reduce_max(train))

    @abc.abstractmethod
    def outputs(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        """What each particle's network makes of images.

        Args:
            params: list of `[P, *shape]`: weights and bias of each layer in turn.
            images: `[P, B, height, width, channels]`.

        Returns:
            As many entries, `[P, B, ...]` in the order of the image's.
        """

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        images, _ = self.examples(split, seed, num)
        targets = images
        if self.likelihood == "bernoulli":
            targets = (images - self._darkest) / (self._brightest - self._darkest)
            targets = tf.clip_by_value(targets, 0.0, 1.0)
        if split == "train":
            images = noise.normal(images, setting["input_noise"], random.fold_in(seed, 0))
        return images, targets

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        images, targets = data
        return self.misfit(targets, self.outputs(params, images))

    def misfit(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The negative log-likelihood, mean over images and pixels: `[P]`."""
        outputs = tf.reshape(outputs, targets.shape)
        if self.likelihood == "bernoulli":
            losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, outputs)
        else:
            losses = 0.5 * tf.square(targets - outputs)
        return tf.reduce_mean(losses, axis=range(1, losses.shape.rank))


@dataclasses.dataclass(frozen=True, eq=False)
class MLPAutoencoder(ImageReconstruction):
    """An autoencoder of dense layers; the decoder mirrors the encoder.

    The code and the outputs are linear in the layer before them.

    Args:
        hidden_units: units of each hidden layer of the encoder, and from last to first
            those of the decoder.
        bottleneck: numbers that the code consists of.
        likelihood: as for `ImageReconstruction`.
        dataset, image_size, activation, batch_size, init_scale, input_noise, data_dir: as
            for `ImageTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural
    Networks", Science 313, 2006; sizes are ours.
    """

    name: ClassVar = "mlp_autoencoder"
    architecture: ClassVar = {
        "dataset": ranges.Choice("digits", "patches"),
        "image_size": ranges.Choice(8),
        "hidden_units": ranges.Layers(0, 2, ranges.Size(16, 64)),
        "bottleneck": ranges.Size(2, 16),
        "likelihood": ranges.Choice(*LIKELIHOODS),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 64),
    }
    large: ClassVar = {
        "image_size": ranges.Choice(16),
        "hidden_units": ranges.Layers(1, 2, ranges.Size(128, 256)),
    }

    hidden_units: tuple[int, ...] = (32,)
    bottleneck: int = 8

    code_statistics: ClassVar = 1
    """Outputs of the encoder for each number of the code."""

    def __post_init__(self) -> None:
        for units in self.hidden_units:
            check_integer("hidden_units", units, low=1)
        check_integer("bottleneck", self.bottleneck, low=1)
        super().__post_init__()

    def weight_shapes(self, image_shape: Sequence[int], num_classes: int) -> list[tuple[int, ...]]:
        pixels = int(np.prod(image_shape))
        encoder = [pixels, *self.hidden_units, self.code_statistics * self.bottleneck]
        decoder = [self.bottleneck, *self.hidden_units[::-1], pixels]
        return [*itertools.pairwise(encoder), *itertools.pairwise(decoder)]

    def outputs(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        return self.decode(params, self.encode(params, images))

    def encode(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        """What the encoder says of images: `[P, B, code_statistics * bottleneck]`."""
        flat = tf.reshape(images, (*images.shape[:2], -1))
        half = len(params) // 2
        return layers.mlp(flat, params[:half], layers.activation(self.activation))

    def decode(self, params: Sequence[Tensor], code: Tensor) -> Tensor:
        """The outputs for codes `[P, B, bottleneck]`: `[P, B, pixels]`."""
        half = len(params) // 2
        return layers.mlp(code, params[half:], layers.activation(self.activation))


@dataclasses.dataclass(frozen=True, eq=False)
class ConvAutoencoder(ImageReconstruction):
    """A convolutional autoencoder; each layer of the encoder halves height and width.

    The encoder's layers are 3x3 convolutions with stride 2, the decoder's a doubling of
    each pixel and then a 3x3 convolution. The code and the outputs are linear in the layer
    before them.

    Args:
        filters: outputs of each convolution of the encoder but the last, and from last to
            first those of the decoder.
        bottleneck: outputs of the encoder's last convolution: channels of the code.
        likelihood: as for `ImageReconstruction`.
        dataset, image_size, activation, batch_size, init_scale, input_noise, data_dir: as
            for `ImageTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Masci et al., "Stacked Convolutional Auto-Encoders for Hierarchical Feature
    Extraction", ICANN 2011; up-sampling before a convolution is that of Odena et al.,
    "Deconvolution and Checkerboard Artifacts", Distill 2016; sizes are ours.
    """

    name: ClassVar = "conv_autoencoder"
    architecture: ClassVar = {
        "dataset": ranges.Choice("digits", "patches"),
        "image_size": ranges.Choice(8, 16),
        "filters": ranges.Layers(1, 2, ranges.Size(4, 8)),
        "bottleneck": ranges.Size(2, 8),
        "likelihood": ranges.Choice(*LIKELIHOODS),
        "activation": ranges.Choice(*layers.ACTIVATIONS),
        "batch_size": ranges.Size(8, 32),
    }
    large: ClassVar = {
        "image_size": ranges.Choice(32),
        "filters": ranges.Layers(2, 3, ranges.Size(32, 64)),
    }

    dataset: Any = "patches"
    image_size: int | None = 16
    filters: tuple[int, ...] = (8,)
    bottleneck: int = 4

    def __post_init__(self) -> None:
        for outputs in self.filters:
            check_integer("filters", outputs, low=1)
        check_integer("bottleneck", self.bottleneck, low=1)
        super().__post_init__()

    def weight_shapes(self, image_shape: Sequence[int], num_classes: int) -> list[tuple[int, ...]]:
        height, width, channels = image_shape
        factor = 2 ** (len(self.filters) + 1)
        if height % factor or width % factor:
            raise ValueError(
                f"`filters` must be fewer: height and width of images, {height} and {width}, "
                f"must be multiples of {factor}. Received: filters={self.filters}"
            )
        encoder = [channels, *self.filters, self.bottleneck]
        sizes = [*itertools.pairwise(encoder), *itertools.pairwise(encoder[::-1])]
        return [(_KERNEL_SIZE, _KERNEL_SIZE, *pair) for pair in sizes]

    def outputs(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        nonlinearity = layers.activation(self.activation)
        x = tf.transpose(images, (0, 4, 2, 3, 1))
        depth = len(self.filters) + 1
        for layer, (filters, bias) in enumerate(zip(params[::2], params[1::2], strict=True)):
            if layer % depth:
                x = nonlinearity(x)
            encodes = layer < depth
            x = convolve(x if encodes else upsample(x, 2), filters, 2 if encodes else 1)
            x += bias[:, :, None, None, None]
        return layers.transpose(x, (0, 4, 2, 3, 1))
