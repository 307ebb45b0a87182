"""Small causal transformers: language models of characters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import ranges
from meta.tasks.families.language_model import LanguageModel
from meta.tasks.networks import attention, layers

_WIDENING = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Transformer(LanguageModel):
    """A language model of characters: a decoder-only transformer.

    Embeddings of characters and of positions, learned both; blocks of causal
    self-attention and of two dense layers, 4 times as wide in between, each on the
    normalised input and added to it; normalisation and a dense layer. Weights start
    Glorot-uniform, biases at zero, scales of the normalisations at one.

    Args:
        num_blocks: blocks.
        width: numbers that stand for a position.
        num_heads: heads of the attention; it divides `width`.
        activation: between the two dense layers, any Keras activation by name.
        dataset, sequence_length, batch_size, init_scale, character_noise, data_dir: as for
            `LanguageModel`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Vaswani et al., arXiv 1706.03762, the decoder without an encoder, normalised
    before each part as in Xiong et al., arXiv 2002.04745.
    """

    name: ClassVar = "transformer"
    architecture: ClassVar = {
        "num_blocks": ranges.Choice(1, 2),
        "width": ranges.Size(8, 32),
        "num_heads": ranges.Size(1, 4),
        "activation": ranges.Choice("relu", "gelu"),
        "sequence_length": ranges.Size(8, 32),
        "batch_size": ranges.Size(4, 16),
    }
    large: ClassVar = {
        "num_blocks": ranges.Choice(2, 3),
        "width": ranges.Choice(128),
        "num_heads": ranges.Choice(4, 8),
    }

    num_blocks: int = 1
    width: int = 16
    num_heads: int = 2
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_integer("num_blocks", self.num_blocks, low=1)
        check_integer("width", self.width, low=1)
        check_integer("num_heads", self.num_heads, low=1)
        if self.width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide width={self.width}. Received: num_heads={self.num_heads}"
            )
        layers.activation(self.activation)
        super().__post_init__()

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        """List: embedding, positions, what `_init_block` gives of each block, the end."""
        scale, width = setting["init_scale"], self.width
        tables = layers.init_weights(
            random.fold_in(seed, 0),
            num,
            [(self.num_characters, width), (self.sequence_length, width)],
            scale,
        )
        params = tables[::2]
        for block in range(self.num_blocks):
            params += self._init_block(random.fold_in(seed, 2 + block), num, scale)
        end = [(width, self.num_characters)]
        end = layers.init_weights(random.fold_in(seed, 1), num, end, scale)
        return [*params, *self._init_norm(num), *end]

    def _init_norm(self, num: int) -> list[Tensor]:
        return [tf.ones((num, self.width)), tf.zeros((num, self.width))]

    def _init_block(self, seed: Tensor, num: int, scale: Tensor) -> list[Tensor]:
        """Normalisation, attention, normalisation, dense layers: a list of 12."""
        shapes = [(self.width, _WIDENING * self.width), (_WIDENING * self.width, self.width)]
        return [
            *self._init_norm(num),
            *attention.init_self_attention(random.fold_in(seed, 0), num, self.width, scale),
            *self._init_norm(num),
            *layers.init_weights(random.fold_in(seed, 1), num, shapes, scale),
        ]

    def logits(self, params: Sequence[Tensor], characters: Tensor) -> Tensor:
        embedding, positions, *blocks, scale, bias, last, last_bias = params
        x = layers.embed(characters, embedding) + positions[:, None]
        length = len(blocks) // self.num_blocks
        for block in range(self.num_blocks):
            x = self._block(x, blocks[block * length : (block + 1) * length])
        return layers.dense(layers.layer_norm(x, scale, bias), last, last_bias)

    def _block(self, x: Tensor, params: Sequence[Tensor]) -> Tensor:
        normalized = layers.layer_norm(x, *params[:2])
        x = x + attention.self_attention(normalized, params[2:6], self.num_heads, causal=True)
        normalized = layers.layer_norm(x, *params[6:8])
        return x + layers.mlp(normalized, params[8:], layers.activation(self.activation))
