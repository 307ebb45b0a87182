"""Image classification with an MLP-Mixer."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lopt_keras.types import Tensor
from meta.tasks.families.patch_network import PatchNetwork
from meta.tasks.networks import layers

_EXPANSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class MLPMixer(PatchNetwork):
    """A small MLP-Mixer that classifies the images of a dataset.

    A block adds to its input an MLP over the patches, the same for each entry of their
    vectors, of its layer normalisation, and then an MLP over the vector, the same for each
    patch, likewise. Both have one hidden layer, of twice as many units as inputs.

    Args:
        patch_size, width, num_blocks, activation: as for `PatchNetwork`.
        dataset, image_size, batch_size, init_scale, input_noise, label_noise, data_dir: as
            for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Tolstikhin et al., arXiv 2105.01601, equation 1; sizes are ours.
    """

    name: ClassVar = "mlp_mixer"

    def block_shapes(self, num_patches: int) -> list[tuple[int, ...]]:
        return [
            shape
            for size in (num_patches, self.width)
            for shape in ((self.width,), (size, _EXPANSION * size), (_EXPANSION * size, size))
        ]

    def block(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        nonlinearity = layers.activation(self.activation)
        tokens, channels = params[:6], params[6:]
        mixed = layers.transpose(layers.layer_norm(x, *tokens[:2]), (0, 1, 3, 2))
        mixed = layers.mlp(mixed, tokens[2:], nonlinearity)
        x += layers.transpose(mixed, (0, 1, 3, 2))
        return x + layers.mlp(layers.layer_norm(x, *channels[:2]), channels[2:], nonlinearity)
