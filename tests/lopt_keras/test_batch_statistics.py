"""Statistics of batch normalisation, for the weights that a model has."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lopt_keras import LearnedOptimizer, callbacks
from lopt_keras.batch_statistics import BatchStatistics

RNG = np.random.default_rng(0)
X = (3.0 * RNG.standard_normal((64, 5)) + 2.0).astype("float32")
Y = X[:, :1] - X[:, 1:2]


def make_model(frozen=False):
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization()])
    layers = [keras.Input((5,)), keras.layers.Dropout(0.5), inner, keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    inner.layers[1].trainable = not frozen
    return model, inner.layers[1]


def without_dropout(model):
    """The same weights, and inputs that no dropout changes."""
    return keras.Sequential([keras.Input((5,)), *model.layers[1:]])


def expected(model, x, batch_size):
    """Means over batches of the mean and variance of what the layer reads."""
    dense = model.layers[-2].layers[0]
    outputs = dense(x).numpy().reshape(-1, batch_size, 4)
    return outputs.mean(axis=(0, 1)), outputs.var(axis=1).mean(axis=0)


@pytest.mark.parametrize("given", ["arrays", "dataset", "inputs"])
def test_they_are_the_means_over_batches(given):
    model, normalization = make_model()
    model = without_dropout(model)
    data = {"arrays": (X, Y), "inputs": (X,), "dataset": tf.data.Dataset.from_tensor_slices((X, Y))}
    data = data[given].batch(16) if given == "dataset" else data[given]
    statistics = BatchStatistics(data, batch_size=16)
    for _ in range(2):
        statistics.refresh(model)
        mean, variance = expected(model, X, 16)
        np.testing.assert_allclose(normalization.moving_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(normalization.moving_variance, variance, rtol=1e-5)
    BatchStatistics(data, batch_size=16, num_batches=1).refresh(model)
    np.testing.assert_allclose(normalization.moving_mean, expected(model, X[:16], 16)[0], rtol=1e-5)


def test_nothing_else_changes():
    model, normalization = make_model()
    own = (normalization.moving_mean, normalization.moving_variance)
    others = [v for v in model.variables if all(v is not x for x in own)]
    before = [v.numpy() for v in others]
    BatchStatistics((X, Y), batch_size=16).refresh(model)
    for variable, value in zip(others, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert normalization.momentum == 0.99
    assert np.abs(normalization.moving_mean.numpy()).max() > 0.1


def test_what_is_frozen_stays():
    model, normalization = make_model(frozen=True)
    BatchStatistics((X, Y), batch_size=16).refresh(model)
    np.testing.assert_array_equal(normalization.moving_mean.numpy(), np.zeros(4))


def test_after_fit_they_are_of_the_averages():
    model, normalization = make_model()
    model = without_dropout(model)
    model.compile(LearnedOptimizer(jit_compile=False), loss="mse")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            mean, _ = expected(model, X, 16)
            seen.append((normalization.moving_mean.numpy(), mean))

    given = [keras.callbacks.SwapEMAWeights(), callbacks.BatchStatistics((X, Y), batch_size=16)]
    # `Look` comes first, so that it looks before the weights are swapped back.
    model.fit(X, Y, epochs=2, validation_data=(X, Y), callbacks=[Look(), *given], verbose=0)
    assert len(seen) == 2
    for found, mean in [*seen, (normalization.moving_mean.numpy(), expected(model, X, 16)[0])]:
        np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"data": X}, ValueError),
        ({"data": 3}, ValueError),
        ({"data": (X, Y), "batch_size": 0}, ValueError),
        ({"data": (X, Y), "num_batches": 1.5}, TypeError),
    ],
)
def test_wrong_arguments_are_named(kwargs, error):
    with pytest.raises(error, match=f"`{list(kwargs)[-1]}`"):
        callbacks.BatchStatistics(**kwargs)
