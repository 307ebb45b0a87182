"""Small Keras models with bundled data."""

from typing import Any, NamedTuple

import keras
import numpy as np
import sklearn.datasets
from keras import layers

from meta import datasets

_WINDOW = 32
_BINS = 8
_SERIES = 64


class Workload(NamedTuple):
    """A model and what it is trained on.

    Attributes:
        make: function without arguments that returns the model.
        loss: for `compile`.
        train, validation, test: pairs of inputs (array, or dict of arrays) and targets.
        batch_size, epochs: for `fit`.
    """

    make: Any
    loss: Any
    train: Any
    validation: Any
    test: Any
    batch_size: int
    epochs: int


def convnet(data_dir):
    """Three convolutions with pooling and dropout: which photograph is a 16x16 patch of?"""
    data = datasets.load("patches", data_dir, size=16)

    def make():
        return keras.Sequential(
            [
                keras.Input((16, 16, 1)),
                layers.Conv2D(16, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.Flatten(),
                layers.Dropout(0.25),
                layers.Dense(12),
            ]
        )

    return _classifier(make, data, examples=4000, epochs=8)


def resnet(data_dir):
    """Three residual blocks with batch normalisation, on 8x8 digits."""

    def block(x, filters, stride):
        y = layers.Conv2D(filters, 3, stride, "same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 3, 1, "same", use_bias=False)(y))
        if stride > 1:
            x = layers.Conv2D(filters, 1, stride, use_bias=False)(x)
        return layers.ReLU()(layers.Add()([x, y]))

    def make():
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        for filters, stride in ((16, 1), (32, 2), (32, 1)):
            x = block(x, filters, stride)
        return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    return _classifier(make, datasets.load("digits", data_dir), epochs=10)


def lstm(data_dir):
    """An LSTM that predicts the next character of English prose."""

    def make():
        return keras.Sequential(
            [
                keras.Input((_WINDOW,), dtype="int32"),
                layers.Embedding(64, 24),
                layers.LSTM(64, return_sequences=True),
                layers.Dense(64),
            ]
        )

    return _language_model(make, data_dir)


def transformer(data_dir):
    """Two causal transformer blocks, for the same."""

    def make():
        inputs = keras.Input((_WINDOW,), dtype="int32")
        positions = keras.ops.arange(_WINDOW)[None]
        x = layers.Embedding(64, 32)(inputs) + layers.Embedding(_WINDOW, 32)(positions)
        for _ in range(2):
            x = _block(x, 32, causal=True)
        return keras.Model(inputs, layers.Dense(64)(layers.LayerNormalization()(x)))

    return _language_model(make, data_dir)


def autoencoder(data_dir):
    """A convolutional autoencoder of 16x16 patches, with 32 numbers in the middle."""
    data = datasets.load("patches", data_dir, size=16)

    def make():
        return keras.Sequential(
            [
                keras.Input((16, 16, 1)),
                layers.Conv2D(16, 3, 2, "same", activation="relu"),
                layers.Conv2D(32, 3, 2, "same", activation="relu"),
                layers.Flatten(),
                layers.Dense(32),
                layers.Dense(4 * 4 * 32, activation="relu"),
                layers.Reshape((4, 4, 32)),
                layers.Conv2DTranspose(16, 3, 2, "same", activation="relu"),
                layers.Conv2DTranspose(1, 3, 2, "same"),
            ]
        )

    splits = {name: data.split(name).images for name in datasets.SPLITS}
    splits["train"] = _some(splits["train"], 4000)
    return Workload(make, "mse", **{name: (x, x) for name, x in splits.items()}, **_fit(64, 8))


def tabular(data_dir):
    """An MLP on 30 numbers and the embeddings of their quantiles: is a tumour benign?"""
    data = datasets.load_table("breast_cancer", data_dir)
    edges = np.quantile(data.train.inputs, np.linspace(0, 1, _BINS + 1)[1:-1], axis=0)

    def inputs(numbers):
        bins = (numbers[None] > edges[:, None]).sum(axis=0) + _BINS * np.arange(numbers.shape[1])
        return {"numbers": numbers, "bins": bins.astype("int32")}

    def make():
        given = {
            "numbers": keras.Input((30,), name="numbers"),
            "bins": keras.Input((30,), dtype="int32", name="bins"),
        }
        x = layers.Flatten()(layers.Embedding(30 * _BINS, 4)(given["bins"]))
        x = layers.Concatenate()([x, given["numbers"]])
        for _ in range(2):
            x = layers.Dropout(0.2)(layers.Dense(64, activation="relu")(x))
        return keras.Model(given, layers.Dense(2)(x))

    splits = {
        name: (inputs(data.split(name).inputs), data.split(name).targets)
        for name in datasets.SPLITS
    }
    return Workload(make, _cross_entropy(), **splits, **_fit(32, 30))


def vision_transformer(data_dir):
    """Two transformer blocks on the 16 patches of an 8x8 digit."""

    def make():
        inputs = keras.Input((8, 8, 1))
        x = layers.Reshape((16, 32))(layers.Conv2D(32, 2, 2)(inputs))
        x = x + layers.Embedding(16, 32)(keras.ops.arange(16)[None])
        for _ in range(2):
            x = _block(x, 32, causal=False)
        x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
        return keras.Model(inputs, layers.Dense(10)(x))

    return _classifier(make, datasets.load("digits", data_dir), epochs=12)


def diffusion(data_dir):
    """A network that predicts the noise in 8x8 digits, as a diffusion model is trained.

    Its output is the error of the prediction. Noise and times are drawn anew for each batch,
    those of validation too.
    """
    data = datasets.load("digits", data_dir)

    def make():
        clean = keras.Input((8, 8, 1))
        noisy, time, noise = _Noised()(clean)
        x = layers.Conv2D(32, 3, padding="same", activation="swish")(noisy)
        x = x + layers.Dense(32)(layers.Dense(32, activation="swish")(time))[:, None, None]
        for _ in range(2):
            x = x + layers.Conv2D(32, 3, padding="same", activation="swish")(x)
        return keras.Model(clean, layers.Conv2D(1, 3, padding="same")(x) - noise)

    splits = {name: data.split(name).images for name in datasets.SPLITS}
    pairs = {name: (x, np.zeros_like(x)) for name, x in splits.items()}
    return Workload(make, "mse", **pairs, **_fit(32, 12))


def series_transformer(data_dir):
    """A transformer that predicts the brightness of the next pixel along rows of photographs."""
    data = datasets.load("patches", data_dir, size=16)

    def make():
        inputs = keras.Input((_SERIES,))
        x = layers.Dense(32)(layers.Reshape((_SERIES, 1))(inputs))
        x = x + layers.Embedding(_SERIES, 32)(keras.ops.arange(_SERIES)[None])
        for _ in range(2):
            x = _block(x, 32, causal=False)
        x = layers.LayerNormalization()(layers.GlobalAveragePooling1D()(x))
        return keras.Model(inputs, layers.Dense(1)(x))

    def series(images):
        pixels = images.reshape(len(images), -1)
        return pixels[:, :_SERIES], pixels[:, _SERIES : _SERIES + 1]

    splits = {name: series(data.split(name).images) for name in datasets.SPLITS}
    splits["train"] = tuple(_some(array, 4000) for array in splits["train"])
    return Workload(make, "mse", **splits, **_fit(64, 6))


def raw_targets(data_dir):
    """An MLP that predicts a number between 250 and 3,460, not scaled: progress of diabetes."""
    inputs, targets = sklearn.datasets.load_diabetes(return_X_y=True)
    inputs = (20.0 * inputs).astype("float32")  # A standard deviation of 1.
    targets = (10.0 * targets).astype("float32")[:, None]
    order = np.random.RandomState(0).permutation(len(inputs))
    parts = dict(zip(datasets.SPLITS, np.split(order, [302, 372]), strict=True))

    def make():
        return keras.Sequential(
            [
                keras.Input((10,)),
                layers.Dense(64, activation="relu"),
                layers.Dense(64, activation="relu"),
                layers.Dense(1),
            ]
        )

    splits = {name: (inputs[part], targets[part]) for name, part in parts.items()}
    return Workload(make, "mse", **splits, **_fit(32, 60))


def batch_normalization(data_dir):
    """Dense layers with batch normalisation and dropout, on 8x8 digits."""

    def make():
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
        for units in (128, 64):
            model.add(layers.Dense(units))
            model.add(layers.BatchNormalization())
            model.add(layers.ReLU())
            model.add(layers.Dropout(0.3))
        model.add(layers.Dense(10))
        return model

    return _classifier(make, datasets.load("digits", data_dir), epochs=20)


def fine_tuning(data_dir):
    """A new head on frozen convolutions that were trained to tell even digits from odd."""
    data = datasets.load("digits", data_dir)
    body = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
        ]
    )
    pretrained = keras.Sequential([body, layers.Dense(2)])
    pretrained.compile(keras.optimizers.Adam(0.003), _cross_entropy())
    images, labels = data.train
    pretrained.fit(images, labels % 2, epochs=5, batch_size=64, verbose=0)
    weights = body.get_weights()

    def make():
        frozen = keras.models.clone_model(body)
        frozen.set_weights(weights)
        frozen.trainable = False
        return keras.Sequential([frozen, layers.Dense(64, activation="relu"), layers.Dense(10)])

    return _classifier(make, data, epochs=12)


WORKLOADS = {
    "convnet": convnet,
    "resnet": resnet,
    "lstm": lstm,
    "transformer": transformer,
    "autoencoder": autoencoder,
    "tabular": tabular,
    "vision_transformer": vision_transformer,
    "diffusion": diffusion,
    "series_transformer": series_transformer,
    "raw_targets": raw_targets,
    "batch_normalization": batch_normalization,
    "fine_tuning": fine_tuning,
}
"""Functions from the directory of the datasets to a `Workload`, by name.

None of them is a task of meta-training.
"""


def digits_convnet(data_dir):
    """One convolution and a dense layer, 810 parameters, on 8x8 digits."""

    def make():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, 2, activation="relu"),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )

    return _classifier(make, datasets.load("digits", data_dir), epochs=10)


def larger_digits_convnet(data_dir):
    """Two convolutions and two dense layers, 38,000 parameters, on 8x8 digits."""

    def make():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(16, 3, activation="relu"),
                layers.Conv2D(32, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dense(10),
            ]
        )

    return _classifier(make, datasets.load("digits", data_dir), epochs=10)


def digits_mlp(data_dir):
    """A hidden layer of 128 units, on 8x8 digits."""

    def make():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dense(10),
            ]
        )

    return _classifier(make, datasets.load("digits", data_dir), epochs=10)


def wine(data_dir):
    """An MLP on 13 measures of wines: 108 examples."""
    data = datasets.load_table("wine", data_dir)

    def make():
        return keras.Sequential(
            [
                keras.Input((13,)),
                layers.Dense(16, activation="relu"),
                layers.Dense(3),
            ]
        )

    splits = {name: tuple(data.split(name)) for name in datasets.SPLITS}
    return Workload(make, _cross_entropy(), **splits, **_fit(16, 30))


SMALLER = {
    "digits": digits_convnet,
    "convnet": larger_digits_convnet,
    "mlp": digits_mlp,
    "wine": wine,
}
"""As `WORKLOADS`, for benchmarks of one model; meta-training may have seen the like of them."""


@keras.saving.register_keras_serializable("lopt_keras_benchmarks")
class _Noised(layers.Layer):
    """Images to noisy images, the time of the noise in [0, 1], and the noise."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._generator = keras.random.SeedGenerator()

    def call(self, images):
        count = keras.ops.shape(images)[0]
        time = keras.random.uniform((count, 1, 1, 1), seed=self._generator)
        noise = keras.random.normal(keras.ops.shape(images), seed=self._generator)
        angle = time * (np.pi / 2)
        noisy = keras.ops.cos(angle) * images + keras.ops.sin(angle) * noise
        return noisy, time[:, 0, 0], noise


def _block(x, width, causal):
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, width // 4)(y, y, use_causal_mask=causal)
    y = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(width)(y)


def _classifier(make, data, epochs, examples=None):
    splits = {name: tuple(data.split(name)) for name in datasets.SPLITS}
    splits["train"] = tuple(_some(array, examples) for array in splits["train"])
    return Workload(make, _cross_entropy(), **splits, **_fit(64, epochs))


def _language_model(make, data_dir):
    data = datasets.load_text("prose", data_dir)

    def windows(text, count):
        text = text[: count * (_WINDOW + 1)].reshape(-1, _WINDOW + 1)
        return text[:, :-1], text[:, 1:]

    splits = {
        name: windows(data.split(name), 4000 if name == "train" else 500)
        for name in datasets.SPLITS
    }
    return Workload(make, _cross_entropy(), **splits, **_fit(64, 6))


def _some(array, count):
    """So many examples, at random but always the same; all if `count` is None."""
    return (
        array if count is None else array[np.random.RandomState(0).permutation(len(array))[:count]]
    )


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _fit(batch_size, epochs):
    return {"batch_size": batch_size, "epochs": epochs}
