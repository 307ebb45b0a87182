"""What the language models share: characters of a text, next-character loss."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import datasets, random
from meta.tasks import base, ranges
from meta.tasks.families import noise
from meta.tasks.networks import layers


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel(base.Task):
    """Prediction of each next character, on random windows of a text.

    Windows are drawn with replacement, inside the compiled program, from the texts of
    the split one after the other. The loss is the cross entropy of the next character in
    nats, mean over all positions.

    A subclass says what the network is: `weight_shapes` or `init`, and `logits`.

    Args:
        dataset: tensorflow-datasets name with a feature `text`, or a `TextDataset`.
        sequence_length: characters that the network reads, and predicts.
        batch_size: windows in a batch.
        init_scale: multiplies the initial weights.
        character_noise: fraction of the characters read in training that are drawn at random,
            in each batch anew; those to predict are left alone.
        data_dir: where the dataset is prepared; see `datasets.load_text`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "character_noise": ranges.Uniform(0.0, 0.2),
    }

    # Of the fields of an instance.
    num_characters: ClassVar[int]
    _texts: ClassVar[dict[str, Tensor]]

    dataset: Any = "prose"
    sequence_length: int = 16
    batch_size: int = 16
    init_scale: float = 1.0
    character_noise: float = 0.0
    data_dir: str | None = base.elsewhere()

    def __post_init__(self) -> None:
        check_integer("sequence_length", self.sequence_length, low=1)
        check_integer("batch_size", self.batch_size, low=1)
        super().__post_init__()
        dataset = self.dataset
        if isinstance(dataset, str):
            dataset = datasets.load_text(dataset, self.data_dir)
        texts = {name: tf.constant(dataset.split(name)) for name in datasets.SPLITS}
        shortest = min(len(text) for text in texts.values())
        check_integer("sequence_length", self.sequence_length, low=1, high=shortest - 1)
        object.__setattr__(self, "_texts", texts)
        object.__setattr__(self, "num_characters", len(dataset.characters))

    @abc.abstractmethod
    def logits(self, params: Sequence[Tensor], characters: Tensor) -> Tensor:
        """What each particle's network says of each next character.

        Args:
            params: as `init` returned them.
            characters: `[P, B, sequence_length]` int32.

        Returns:
            `[P, B, sequence_length, num_characters]`; those of a position depend on
            the characters up to it.
        """

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        """Characters read, and the one after each: `[num, B, sequence_length]` int32 both."""
        text = self._texts[split]
        starts = random.integers((num, self.batch_size, 1), seed, len(text) - self.sequence_length)
        windows = tf.gather(text, starts + tf.range(self.sequence_length + 1))
        read, following = windows[..., :-1], windows[..., 1:]
        if split == "train":
            seeds = random.split(seed, 2)
            fraction = setting["character_noise"]
            read = noise.random_labels(read, fraction, self.num_characters, seeds)
        return read, following

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        read, following = data
        return layers.cross_entropy(following, self.logits(params, read))
