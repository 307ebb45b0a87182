"""Variational autoencoders of images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random
from meta.tasks import ranges
from meta.tasks.families.autoencoder import MLPAutoencoder


@dataclasses.dataclass(frozen=True, eq=False)
class VAE(MLPAutoencoder):
    """A variational autoencoder of dense layers.

    The encoder's outputs are the means of the code's Gaussian and then the logarithms of
    its variances; the prior is standard normal. The loss is the negative of the lower
    bound on the log-likelihood of an image, for each of its pixels: that of
    `ImageReconstruction` (which lacks the constant `log(2 pi) / 2` of the Gaussian) for
    one random code of each image, plus `beta` times the Kullback-Leibler divergence.

    Args:
        beta: weight of the divergence; 1 is the bound.
        hidden_units, bottleneck, likelihood: as for `MLPAutoencoder`.
        dataset, image_size, activation, batch_size, init_scale, input_noise, data_dir: as
            for `ImageTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Kingma and Welling, arXiv 1312.6114, equation 10; beta is that of Higgins et
    al., "beta-VAE", ICLR 2017; sizes are ours.
    """

    name: ClassVar = "vae"
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 2.0),
        "input_noise": ranges.Uniform(0.0, 0.5),
        "beta": ranges.LogUniform(0.1, 4.0),
    }

    beta: float = 1.0

    code_statistics: ClassVar = 2

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        """Images and targets, and the standard normal noise of the codes."""
        shape = (num, self.batch_size, self.bottleneck)
        noise = random.normal(shape, random.fold_in(seed, 1))
        return *super().batch(split, seed, num, setting), noise

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        images, targets, noise = data
        mean, log_variance = tf.split(self.encode(params, images), 2, axis=-1)
        code = mean + tf.exp(0.5 * log_variance) * noise
        misfit = self.misfit(targets, self.decode(params, code))
        pixels = targets.shape[2:].num_elements()
        return misfit + setting["beta"] * divergence(mean, log_variance) / pixels


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of Gaussians from the standard normal, mean over examples: `[P]`.

    `0.5 sum(mean^2 + variance - 1 - log(variance))` over the code, as in Kingma and
    Welling, arXiv 1312.6114, appendix B.

    Args:
        mean, log_variance: `[P, B, code]`.
    """
    terms = tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance
    return 0.5 * tf.reduce_mean(tf.reduce_sum(terms, axis=2), axis=1)
