import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from meta import datasets
from meta.datasets import image_dataset
from meta.datasets import patches as patches_module


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def digits(data_dir):
    return datasets.load("digits", data_dir)


@pytest.fixture(scope="module")
def patches(data_dir):
    return datasets.load("patches", data_dir)


def grey_levels(dataset, split):
    """The images before they were standardised with the training split: uint8."""
    low, high = dataset.train.images.min(), dataset.train.images.max()
    images = dataset.split(split).images
    return np.rint((images - low) / (high - low) * 255).astype("uint8")


def rows(split):
    return {image.tobytes() for image in split.images}


def test_digits_are_scikit_learns_in_disjoint_splits(digits):
    assert digits.name == "digits"
    assert digits.num_classes == 10
    sizes = {name: len(digits.split(name).labels) for name in datasets.SPLITS}
    assert sizes == {"train": 1197, "validation": 300, "test": 300}
    # No two of the 1797 images are equal, so disjoint splits have them all.
    assert len(rows(digits.train) | rows(digits.validation) | rows(digits.test)) == 1797
    pixels = np.concatenate([digits.split(name).images for name in datasets.SPLITS])
    levels = np.unique(pixels)
    assert pixels.shape == (1797, 8, 8, 1)
    assert len(levels) == 17
    raw = load_digits().data
    standardised = np.sort((pixels.reshape(1797, 64) - levels[0]).sum(axis=1))
    scale = (levels[-1] - levels[0]) / 16
    np.testing.assert_allclose(standardised / scale, np.sort(raw.sum(axis=1)), rtol=2e-3)


def test_images_are_standardised_by_the_training_split(digits):
    np.testing.assert_allclose(digits.train.images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(digits.train.images.std(), 1, atol=1e-4)
    assert digits.train.images.dtype == np.float32
    assert digits.train.labels.dtype == np.int32


def test_a_second_load_reads_what_was_prepared(digits, data_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr(datasets.Digits, "_generate_examples", fail)
    again = datasets.load("digits", data_dir)
    for name in datasets.SPLITS:
        np.testing.assert_array_equal(again.split(name).images, digits.split(name).images)
        np.testing.assert_array_equal(again.split(name).labels, digits.split(name).labels)


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_other_image_datasets_go_through_the_same_function(name, shape):
    with tfds.testing.mock_data(num_examples=200):
        dataset = datasets.load(name)
    assert dataset.num_classes == 10
    for split in datasets.SPLITS:
        assert dataset.split(split).images.shape[1:] == shape
        assert len(dataset.split(split).images) > 0


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ("train validation test", ("train[:100%]", "validation", "test")),
        ("train test", ("train[:90%]", "train[90%:]", "test")),
        ("train validation", ("train[:90%]", "validation", "train[90%:100%]")),
        ("train", ("train[:80%]", "train[90%:]", "train[80%:90%]")),
    ],
)
def test_missing_splits_are_cut_from_the_training_split(available, expected):
    ranges = image_dataset._split_ranges(available.split())
    assert tuple(ranges[name] for name in datasets.SPLITS) == expected


def test_what_cannot_be_loaded_is_named(data_dir, monkeypatch):
    with pytest.raises(ValueError, match="'no_such_dataset'"):
        datasets.load("no_such_dataset", data_dir)
    with pytest.raises(ValueError, match="'image'.*'imdb_reviews'"):
        datasets.load("imdb_reviews", data_dir)

    def offline(self, *args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(ValueError, match="'mnist' cannot be prepared.*no route to host"):
        datasets.load("mnist", data_dir)


def test_an_unknown_split_is_named(digits):
    with pytest.raises(ValueError, match="`split`.*'nope'"):
        digits.split("nope")


def test_patches_are_balanced(patches):
    assert patches.num_classes == 12
    for split, size in (("train", 1000), ("validation", 250), ("test", 250)):
        images, labels = patches.split(split)
        assert images.shape == (12 * size, 32, 32, 1)
        assert np.bincount(labels).tolist() == [size] * 12


def test_no_two_splits_of_the_patches_share_a_pixel(patches):
    for label, name in enumerate(patches_module.PHOTOGRAPHS):
        photograph = patches_module.read_photograph(name)
        covered = {split: np.zeros(photograph.shape, bool) for split in datasets.SPLITS}
        for split, mask in covered.items():
            for row, column in patches_module.corners(photograph.shape, split, label):
                patch = mask[row : row + 32, column : column + 32]
                assert patch.shape == (32, 32)
                patch[:] = True
        assert (sum(mask.astype(int) for mask in covered.values()) <= 1).all()


@pytest.mark.parametrize("label", [0, 3])
def test_patches_are_cut_where_their_corners_are(patches, label):
    photograph = patches_module.read_photograph(list(patches_module.PHOTOGRAPHS)[label])
    expected = []
    for row, column in patches_module.corners(photograph.shape, "test", label):
        patch = photograph[row : row + 32, column : column + 32]
        standard = 128 + 48 * (patch - patch.mean()) / (patch.std() + 2)
        expected.append(np.sort(np.rint(standard.clip(0, 255)).astype("uint8"), axis=None))
    images = grey_levels(patches, "test")[patches.test.labels == label]
    # Turned and mirrored: only the set of a patch's grey levels is sure to be kept.
    received = np.sort(images.reshape(-1, 1024), axis=1)
    assert {x.tobytes() for x in received} == {x.tobytes() for x in expected}


def test_patches_are_turned_and_mirrored_in_all_ways():
    patch = np.arange(1024.0).reshape(32, 32)
    seen = {
        patches_module.standardise(patch, np.random.RandomState(i)).tobytes() for i in range(99)
    }
    standard = np.rint(128 + 48 * (patch - patch.mean()) / (patch.std() + 2)).astype("uint8")
    turned = [np.rot90(x, k) for k in range(4) for x in (standard, standard.T)]
    assert seen == {x.tobytes() for x in turned}


def test_patches_are_the_same_on_every_machine(patches):
    images = sorted(x.tobytes() for x in grey_levels(patches, "test"))
    assert (
        hashlib.sha256(b"".join(images)).hexdigest()
        == "12e2f16e0aff3dfd0db23ca0bd389101dd04657bea3725f0f9bc77c58d761255"
    )
