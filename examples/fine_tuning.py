"""Frozen layers with a new head: digits 5 to 9 with the features of digits 0 to 4."""

import keras
from sklearn import datasets

from lopt_keras import LearnedOptimizer


def data():
    """The images of digits 0 to 4, and of 5 to 9, with their classes from 0."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    return (x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5] - 5)


def compiled(features):
    model = keras.Sequential([features, keras.layers.Dense(5)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(LearnedOptimizer(), loss=loss, metrics=["accuracy"])
    return model


def main(epochs=5):
    """Trains twice, and returns the accuracy on held-out images of the second task."""
    first, (x, y) = data()
    keras.utils.set_random_seed(0)
    features = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    compiled(features).fit(*first, batch_size=32, epochs=epochs, verbose=2)
    features.trainable = False
    model = compiled(features)
    model.fit(x[:600], y[:600], batch_size=32, epochs=epochs, verbose=2)
    return model.evaluate(x[600:], y[600:], verbose=0)[1]


if __name__ == "__main__":
    print(main())
