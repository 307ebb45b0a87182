"""Regression on a small table. Small tables are fitted too far: stop at the best epoch."""

import keras
from sklearn import datasets, model_selection, preprocessing

from lopt_keras import LearnedOptimizer


def data():
    """Train and test sets; features and targets are scaled by the training set."""
    x, y = datasets.load_diabetes(return_X_y=True)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(x, y, random_state=0)
    x_scale = preprocessing.StandardScaler().fit(x_train)
    y_scale = preprocessing.StandardScaler().fit(y_train[:, None])
    return (
        (x_scale.transform(x_train), y_scale.transform(y_train[:, None])),
        (x_scale.transform(x_test), y_scale.transform(y_test[:, None])),
    )


def main(epochs=40):
    """Trains, and returns the mean squared error on the test set."""
    train, test = data()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(LearnedOptimizer(), loss="mse")
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
    ]
    model.fit(
        *train, batch_size=32, epochs=epochs, validation_split=0.2, callbacks=callbacks, verbose=2
    )
    return model.evaluate(*test, verbose=0)


if __name__ == "__main__":
    print(main())
