"""A language model that reads and writes characters, on the texts of Python's own help."""

from pydoc_data import topics

import keras
import numpy as np

from lopt_keras import LearnedOptimizer

LENGTH = 32


def data(characters=100_000):
    """`(inputs, targets, alphabet)`: each target is the next character."""
    text = " ".join(topics.topics.values())[:characters]
    alphabet, codes = np.unique(list(text), return_inverse=True)
    pieces = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return pieces[:, :-1], pieces[:, 1:], "".join(alphabet)


def make_model(letters):
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(letters, 32),
            keras.layers.GRU(64, return_sequences=True),
            keras.layers.Dense(letters),
        ]
    )


def main(epochs=5, characters=100_000):
    """Trains, and returns the losses on held-out text, one an epoch."""
    x, y, alphabet = data(characters)
    keras.utils.set_random_seed(0)
    model = make_model(len(alphabet))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(LearnedOptimizer(), loss=loss)
    # `fit` leaves the averaged weights in the model; this also validates with them.
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = model.fit(
        x, y, batch_size=32, epochs=epochs, validation_split=0.1, callbacks=[swap], verbose=2
    )
    return history.history["val_loss"]


if __name__ == "__main__":
    main()
