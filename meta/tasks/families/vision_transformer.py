"""Image classification with a vision transformer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import ranges
from meta.tasks.families.patch_network import PatchNetwork
from meta.tasks.networks import layers
from meta.tasks.networks.attention import self_attention

_POSITION_SCALE = 0.02
_EXPANSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class VisionTransformer(PatchNetwork):
    """A small vision transformer that classifies the images of a dataset.

    A block adds to its input self-attention of its layer normalisation, and then an MLP of
    one hidden layer of twice the width, likewise. Positions have learned vectors, normal
    with standard deviation 0.02 times `init_scale` at first.

    Args:
        num_heads: of the attention, divides `width`.
        patch_size, width, num_blocks, activation: as for `PatchNetwork`.
        dataset, image_size, batch_size, init_scale, input_noise, label_noise, data_dir: as
            for `ImageClassification`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Dosovitskiy et al., arXiv 2010.11929, equations 1 to 4, with the mean over
    patches in the place of a class token; sizes are ours.
    """

    name: ClassVar = "vision_transformer"
    architecture: ClassVar = {**PatchNetwork.architecture, "num_heads": ranges.Choice(1, 2, 4)}

    num_heads: int = 2

    def __post_init__(self) -> None:
        check_integer("num_heads", self.num_heads, low=1)
        super().__post_init__()

    def block_shapes(self, num_patches: int) -> list[tuple[int, ...]]:
        width, hidden = self.width, _EXPANSION * self.width
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width, {width}. Received: num_heads={self.num_heads}"
            )
        attention = [(width,), (width, 3 * width), (width, width)]
        return [*attention, (width,), (width, hidden), (hidden, width)]

    def block(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        attended, perceived = params[:6], params[6:]
        x += self_attention(layers.layer_norm(x, *attended[:2]), attended[2:], self.num_heads)
        normal = layers.layer_norm(x, *perceived[:2])
        return x + layers.mlp(normal, perceived[2:], layers.activation(self.activation))

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        shape = (num, self.num_patches(self._image_shape), self.width)
        positions = _POSITION_SCALE * random.normal(shape, random.fold_in(seed, 1))
        positions *= layers.per_particle(setting["init_scale"], 3)
        return [*super().init(random.fold_in(seed, 0), num, setting), positions]

    def logits(self, params: Sequence[Tensor], images: Tensor) -> Tensor:
        *params, positions = params
        return self.classified(params, self.embedded(params, images) + positions[:, None])
