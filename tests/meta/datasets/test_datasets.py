import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from meta import datasets
from meta.datasets import patches as patches_module
from meta.datasets import splits

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("datasets")


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
    found = splits.expressions(available.split())
    assert tuple(found[name] for name in datasets.SPLITS) == expected


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


def test_no_two_splits_of_the_patches_share_a_pixel():
    for label, name in enumerate(patches_module.PHOTOGRAPHS):
        photograph = patches_module.read_photograph(name)
        covered = {split: np.zeros(photograph.shape, bool) for split in datasets.SPLITS}
        for split, mask in covered.items():
            for row, column in patches_module.corners(photograph.shape, split, label):
                patch = mask[row : row + 32, column : column + 32]
                assert patch.shape == (32, 32)
                patch[:] = True
        assert (sum(mask.astype(int) for mask in covered.values()) <= 1).all()


def test_patches_are_what_is_at_their_corners(data_dir):
    photograph = patches_module.read_photograph("astronaut")
    corners = patches_module.corners(photograph.shape, "test", label=0)[:50]
    examples = datasets.Patches(data_dir=data_dir)._generate_examples("test")
    for (row, column), (_, example) in zip(corners, examples, strict=False):
        patch = photograph[row : row + 32, column : column + 32]
        symmetries = [np.rot90(x, k) for k in range(4) for x in (patch, patch.T)]
        received = example["image"][:, :, 0]
        unclipped = (received > 0) & (received < 255)
        matches = [np.corrcoef(x[unclipped], received[unclipped])[0, 1] for x in symmetries]
        assert max(matches) > 0.999
        assert sorted(matches)[-2] < 0.99
        assert example["label"] == 0


def test_patches_are_disguised_in_all_ways():
    patch = np.arange(1024.0).reshape(32, 32)
    patch = (patch - patch.mean()) / patch.std()
    symmetries = [np.rot90(x, k) for k in range(4) for x in (patch, patch.T)]
    seen, brightness, contrast = set(), [], []
    for i in range(200):
        disguised = patches_module.disguise(10 * patch, np.random.RandomState(i)).astype(float)
        brightness.append(disguised.mean())
        contrast.append(disguised.std())
        standard = (disguised - brightness[-1]) / contrast[-1]
        (match,) = [j for j, x in enumerate(symmetries) if np.allclose(standard, x, atol=0.05)]
        seen.add(match)
    assert seen == set(range(8))
    for values, low, high in ((brightness, 96, 160), (contrast, 16 / 1.05, 48 / 1.05)):
        assert low - 0.5 <= min(values) < low + 5
        assert high - 5 < max(values) <= high + 0.5


def test_brightness_and_contrast_do_not_tell_the_class(patches):
    def measures(split):
        images, labels = patches.split(split)
        return np.stack([images.mean(axis=(1, 2, 3)), images.std(axis=(1, 2, 3))], axis=1), labels

    neighbours = KNeighborsClassifier(30).fit(*measures("train"))
    assert neighbours.score(*measures("test")) < 0.15  # Chance is 1 in 12.


def test_patches_are_the_same_on_every_machine(patches):
    images = sorted(x.tobytes() for x in grey_levels(patches, "test"))
    assert (
        hashlib.sha256(b"".join(images)).hexdigest()
        == "6227bb16ea5e2fbd652b430be77b2281e66ea6b260d2ee3dd745fe0704bfc714"
    )
