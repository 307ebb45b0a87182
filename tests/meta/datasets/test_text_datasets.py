from pydoc_data.topics import topics

import numpy as np
import pytest
import tensorflow_datasets as tfds

from meta import datasets
from meta.datasets import prose as prose_module
from meta.datasets import text_dataset

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("text_datasets")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def prose(data_dir):
    return datasets.load_text("prose", data_dir)


def paragraphs(text):
    return {" ".join(p.split()) for p in text.split("\n\n")} - {""}


def test_prose_is_english(prose):
    assert prose.name == "prose"
    assert len(prose.characters) == len(set(prose.characters)) == 64
    for name in datasets.SPLITS:
        split = prose.split(name)
        assert split.dtype == np.int32
        assert len(split) > 20_000
        assert split.min() >= 0
        assert split.max() < 64
        text = text_dataset.decode(split)
        assert text.count(" the ") > 100
        assert text.count(text_dataset.OTHER) < 0.01 * len(text)
    assert len(prose.train) > len(prose.validation) + len(prose.test)


def test_the_topics_are_all_there_and_no_two_share_a_paragraph():
    parts = prose_module.divide(topics)
    everything = [text for part in parts.values() for text in part.values()]
    found = [p for text in everything for p in paragraphs(text)]
    assert len(found) == len(set(found))
    assert set(found) == set().union(*(paragraphs(text) for text in topics.values()))
    for split, part in parts.items():
        assert all(prose_module.split_of(topic) == split for topic in part)


def test_a_paragraph_of_two_splits_stays_with_training():
    names = [str(i) for i in range(100)]
    held_out = next(n for n in names if prose_module.split_of(n) == "test")
    seen = next(n for n in names if prose_module.split_of(n) == "train")
    parts = prose_module.divide({held_out: "a\n\n  b b\n\nc", seen: "d\n\nb  b"})
    assert parts["train"] == {seen: "d\n\nb  b\n"}
    assert parts["test"] == {held_out: "a\n\nc\n"}


def test_topics_do_not_change_their_split():
    expected = {"assert": "validation", "class": "validation", "async": "test", "if": "train"}
    assert {name: prose_module.split_of(name) for name in expected} == expected
    fractions = [prose_module.split_of(str(i)) for i in range(2000)]
    assert abs(fractions.count("validation") / 2000 - 0.15) < 0.03
    assert abs(fractions.count("test") / 2000 - 0.15) < 0.03


def test_a_second_load_reads_what_was_prepared(prose, data_dir, monkeypatch):
    monkeypatch.setattr(datasets.Prose, "_generate_examples", None)
    datasets.load_text.cache_clear()
    again = datasets.load_text("prose", data_dir)
    assert again is not prose
    for name in datasets.SPLITS:
        np.testing.assert_array_equal(again.split(name), prose.split(name))


def test_characters_are_encoded_one_by_one():
    text = "Aé’z\tQ\n—~İ9"
    other = text_dataset.OTHER
    assert text_dataset.decode(text_dataset.encode(text)) == f"a{other}'z q\n-{other}{other}9"


def test_other_texts_go_through_the_same_function():
    with tfds.testing.mock_data(num_examples=20):
        dataset = datasets.load_text("lm1b")
    for split in datasets.SPLITS:
        assert len(dataset.split(split)) > 0
        assert dataset.split(split).max() < 64


def test_what_cannot_be_loaded_is_named(data_dir):
    with pytest.raises(ValueError, match="'no_such_dataset'"):
        datasets.load_text("no_such_dataset", data_dir)
    with pytest.raises(ValueError, match="'text'.*'digits'"):
        datasets.load_text("digits", data_dir)
    with pytest.raises(ValueError, match="`split`.*'nope'"):
        datasets.load_text("prose", data_dir).split("nope")
