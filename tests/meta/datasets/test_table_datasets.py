import hashlib
import os
import shutil
import warnings

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from meta import datasets

TABLES = {
    "breast_cancer": (sklearn.datasets.load_breast_cancer, 2, 113),
    "wine": (sklearn.datasets.load_wine, 3, 35),
    "iris_plants": (sklearn.datasets.load_iris, 3, 30),
    "diabetes": (sklearn.datasets.load_diabetes, None, 88),
}

every_table = pytest.mark.parametrize("name", TABLES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def joined(dataset):
    """All examples, each a row with its target last."""
    parts = [dataset.split(name) for name in datasets.SPLITS]
    return np.concatenate([np.c_[part.inputs, part.targets] for part in parts])


def in_order(rows):
    return rows[np.lexsort(rows.T)]


@every_table
def test_tables_are_scikit_learns_in_disjoint_splits(name, data_dir):
    load, num_classes, held_out = TABLES[name]
    dataset = datasets.load_table(name, data_dir)
    inputs, targets = load(return_X_y=True)
    assert (dataset.name, dataset.num_classes) == (name, num_classes)
    sizes = [len(dataset.split(split).targets) for split in datasets.SPLITS]
    assert sizes == [len(inputs) - 2 * held_out, held_out, held_out]
    # Every example is in one split: all of them, standardised as the training split was,
    # are scikit-learn's table up to the columns' scale.
    rows = joined(dataset)
    raw = np.c_[inputs, targets].astype("float32")
    assert rows.shape == raw.shape
    for column in range(rows.shape[1]):
        ours, theirs = np.sort(rows[:, column]), np.sort(raw[:, column])
        slope, offset = np.polyfit(ours, theirs, 1)
        np.testing.assert_allclose(slope * ours + offset, theirs, atol=1e-3 * np.std(theirs))
    # And rows are still rows.
    np.testing.assert_allclose(np.corrcoef(rows.T), np.corrcoef(raw.T), atol=1e-4)


@every_table
def test_inputs_and_numbers_are_standardised_by_the_training_split(name, data_dir):
    dataset = datasets.load_table(name, data_dir)
    inputs, targets = dataset.train
    columns = inputs if dataset.num_classes else np.c_[inputs, targets]
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(columns.std(axis=0), 1, atol=1e-4)
    assert abs(dataset.test.inputs.mean(axis=0)).max() > 1e-2
    for split in datasets.SPLITS:
        inputs, targets = dataset.split(split)
        assert inputs.dtype == np.float32
        assert targets.dtype == (np.int32 if dataset.num_classes else np.float32)
        assert inputs.ndim == 2
        assert targets.shape == inputs.shape[:1]


def test_splits_are_the_same_on_every_machine(data_dir):
    labels = datasets.load_table("breast_cancer", data_dir).test.targets
    numbers = datasets.load_table("diabetes", data_dir).test.targets
    assert labels.sum() == 78
    order = hashlib.sha256(np.argsort(numbers, kind="stable").tobytes()).hexdigest()
    assert order == "a53d672c3968c108e1087b71e688815f5f316a5226656df6197edfa7ba23a6f8"


def test_a_table_is_read_once(data_dir):
    first = datasets.load_table("wine", data_dir)
    assert datasets.load_table("wine", data_dir) is first


def test_images_are_tables_whose_constant_columns_are_zero(data_dir):
    table, images = datasets.load_table("digits", data_dir), datasets.load("digits", data_dir)
    assert table.num_classes == 10
    for split in datasets.SPLITS:
        np.testing.assert_array_equal(table.split(split).targets, images.split(split).labels)
    flat = images.test.images.reshape(300, 64)
    constant = np.ptp(images.train.images.reshape(-1, 64), axis=0) == 0
    assert 0 < constant.sum() < 10
    for pixel in range(64):
        ours, theirs = table.test.inputs[:, pixel], flat[:, pixel]
        if constant[pixel]:
            assert not ours.any()
        elif np.ptp(theirs) > 0:
            assert np.corrcoef(ours, theirs)[0, 1] > 0.9999


@pytest.mark.parametrize(
    ("name", "columns", "num_classes"),
    [("iris", 4, 3), ("penguins/processed", 4, 3), ("wine_quality", 11, None)],
)
def test_other_tables_go_through_the_same_function(name, columns, num_classes):
    with tfds.testing.mock_data(num_examples=200):
        dataset = datasets.load_table(name)
    assert dataset.num_classes == num_classes
    for split in datasets.SPLITS:
        assert dataset.split(split).inputs.shape[1] == columns
        assert len(dataset.split(split).inputs) > 0


def test_what_cannot_be_loaded_is_named(data_dir, monkeypatch):
    with pytest.raises(ValueError, match="'no_such_table'"):
        datasets.load_table("no_such_table", data_dir)
    # Columns that are text, and inputs that are text.
    for name in ("titanic", "imdb_reviews"):
        with pytest.raises(ValueError, match=f"supervised keys.*'{name}'"):
            datasets.load_table(name, data_dir)
    with pytest.raises(ValueError, match="`split`.*'nope'"):
        datasets.load_table("wine", data_dir).split("nope")

    def offline(self, *args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(ValueError, match="'wine_quality' cannot be prepared.*no route to host"):
        datasets.load_table("wine_quality", data_dir)


RECORDS = "wine-train.tfrecord-00000-of-00001"


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "description truncated": lambda folder: os.truncate(folder / "dataset_info.json", 20),
    "description emptied": lambda folder: os.truncate(folder / "dataset_info.json", 0),
    "description missing": lambda folder: os.remove(folder / "dataset_info.json"),
    "records truncated": lambda folder: os.truncate(folder / RECORDS, 200),
    "records emptied": lambda folder: os.truncate(folder / RECORDS, 0),
    "records missing": lambda folder: os.remove(folder / RECORDS),
    "records altered": lambda folder: flip_bit(folder / RECORDS),
    "fewer records": lambda folder: os.truncate(folder / RECORDS, 1040),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_dataset_is_named_and_prepared_anew(damage, data_dir, tmp_path, capsys):
    expected = datasets.load_table("wine", data_dir)
    shutil.copytree(data_dir / "wine", tmp_path / "wine")
    DAMAGE[damage](tmp_path / "wine" / "1.0.0")
    with pytest.warns(UserWarning, match=f"'wine' in '{tmp_path}/.*damaged, and is prepared anew"):
        found = datasets.load_table("wine", tmp_path)
    np.testing.assert_array_equal(joined(found), joined(expected))
    datasets.load_table.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.load_table("wine", tmp_path)
    assert "Downloading" not in capsys.readouterr().out  # Nothing is downloaded.
