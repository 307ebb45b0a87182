"""A convnet on handwritten digits: the learned optimizer beside Adam."""

import keras
from sklearn import datasets, model_selection

from lopt_keras import LearnedOptimizer


def data():
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    x_train, x_test, y_train, y_test = model_selection.train_test_split(x, y, random_state=0)
    return (x_train, y_train), (x_test, y_test)


def make_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def main(epochs=10):
    """Trains twice and returns the validation losses at the end, by name of optimizer."""
    train, test = data()
    losses = {}
    for optimizer in (LearnedOptimizer(), keras.optimizers.Adam()):
        keras.utils.set_random_seed(0)
        model = make_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss=loss, metrics=["accuracy"])
        model.fit(*train, batch_size=32, epochs=epochs, validation_data=test, verbose=2)
        # After `fit` the model holds the averaged weights.
        losses[optimizer.name] = model.evaluate(*test, verbose=0)[0]
    print(losses)
    return losses


if __name__ == "__main__":
    main()
