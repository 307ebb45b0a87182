"""CPython's bundled English prose: the help topics of `pydoc`."""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

_HELD_OUT = {"validation": 0.15, "test": 0.15}


class Prose(tfds.core.GeneratorBasedBuilder):
    """The help topics of Python (`pydoc_data.topics`): some 400 kB of technical English.

    One example is one topic. A hash of its name decides its split: about 15 % of the
    topics are for validation, 15 % for the test. Topics quote each other, so a paragraph
    that several have stays only with one: with a topic of training before one of
    validation before one of the test, then with the first by name. No two examples, and
    so no two splits, share a paragraph.

    The text is that of the Python that prepares the dataset, and differs between its
    versions: a topic stays in its split, but losses are comparable only within one
    version. A directory that one Python has prepared is read as it is by any other.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    pkg_dir_path = pathlib.Path(__file__).parent  # Where tfds looks for metadata files.

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://docs.python.org/3/library/pydoc.html",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        from pydoc_data.topics import topics

        parts = divide(topics)
        return {split: self._generate_examples(parts[split]) for split in parts}

    def _generate_examples(self, part: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for topic, text in part.items():
            yield topic, {"text": text}


def split_of(topic: str) -> str:
    """The split of a topic, from a hash of its name: the same on every machine."""
    number = int.from_bytes(hashlib.sha256(topic.encode()).digest()[:4], "big") / 2**32
    for split, fraction in _HELD_OUT.items():
        if number < fraction:
            return split
        number -= fraction
    return "train"


def divide(topics: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Topics by split, without the paragraphs that another topic has already.

    Args:
        topics: dict from name to text, its paragraphs separated by empty lines.

    Returns:
        Dict from split to a dict from name to text. A topic of which nothing is left is
        left out.
    """
    parts: dict[str, dict[str, str]] = {}
    seen = set()
    for split in ("train", *_HELD_OUT):
        parts[split] = {}
        for topic in sorted(name for name in topics if split_of(name) == split):
            own = []
            for paragraph in topics[topic].split("\n\n"):
                words = " ".join(paragraph.split())
                if words and words not in seen:
                    seen.add(words)
                    own.append(paragraph.strip("\n"))
            if own:
                parts[split][topic] = "\n\n".join(own) + "\n"
    return parts
