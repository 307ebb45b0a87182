"""Recurrent language models of characters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta.tasks import ranges
from meta.tasks.families.language_model import LanguageModel
from meta.tasks.networks import layers, recurrence


@dataclasses.dataclass(frozen=True, eq=False)
class CharRNN(LanguageModel):
    """A language model of characters: embedding, one recurrent layer, dense layer.

    All weights start Glorot-uniform, biases at zero but for the LSTM's forget gate, whose
    bias starts at one, as in Keras (which starts recurrent weights orthogonal).

    Args:
        cell: one of `recurrence.CELLS`.
        embedding_size: numbers that stand for a character.
        hidden_size: units of the recurrent layer.
        dataset, sequence_length, batch_size, init_scale, character_noise, data_dir: as for
            `LanguageModel`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the recurrent language models of Metz et al., arXiv 2009.11243; sizes are ours.
    """

    name: ClassVar = "char_rnn"
    architecture: ClassVar = {
        "cell": ranges.Choice(*recurrence.CELLS),
        "sequence_length": ranges.Size(8, 32),
        "embedding_size": ranges.Size(8, 16),
        "hidden_size": ranges.Size(8, 64),
        "batch_size": ranges.Size(4, 16),
    }
    large: ClassVar = {
        "embedding_size": ranges.Size(32, 64),
        "hidden_size": ranges.Size(256, 256),
    }

    cell: str = "gru"
    embedding_size: int = 16
    hidden_size: int = 32

    def __post_init__(self) -> None:
        if self.cell not in recurrence.CELLS:
            raise ValueError(
                f"`cell` must be one of {tuple(recurrence.CELLS)}. Received: cell={self.cell!r}"
            )
        check_integer("embedding_size", self.embedding_size, low=1)
        check_integer("hidden_size", self.hidden_size, low=1)
        super().__post_init__()

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        """Embedding, the weights of `recurrent_layer`, weights and bias of the last layer."""
        gates = recurrence.CELLS[self.cell].num_gates * self.hidden_size
        shapes = [
            (self.num_characters, self.embedding_size),
            (self.embedding_size, gates),
            (self.hidden_size, gates),
            (self.hidden_size, self.num_characters),
        ]
        embedding, _, *others = layers.init_weights(seed, num, shapes, setting["init_scale"])
        if self.cell == "lstm":
            others[1] += recurrence.forget_bias(self.hidden_size)
        if self.cell != "gru":
            # A second bias would add to the first, and nothing else.
            del others[3]
        return [embedding, *others]

    def logits(self, params: Sequence[Tensor], characters: Tensor) -> Tensor:
        embedding, *weights, last, last_bias = params
        if self.cell != "gru":
            weights.append(None)
        x = layers.embed(characters, embedding)
        x = recurrence.recurrent_layer(x, self.cell, weights)
        return layers.dense(x, last, last_bias)
