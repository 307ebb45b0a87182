"""A training loop of one's own in TensorFlow."""

import keras
import numpy as np
import tensorflow as tf

from lopt_keras import LearnedOptimizer


def data(num=1024):
    """Points in the plane; the target is the product of their coordinates."""
    x = np.random.default_rng(0).uniform(-1, 1, (num, 2)).astype("float32")
    return x, x[:, :1] * x[:, 1:]


def main(steps=500):
    """Trains, and returns the loss on all data, of the averaged weights."""
    x, y = data()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(1)]
    )
    optimizer = LearnedOptimizer()
    optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(batch, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(batch, training=True) - targets) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        # `fit` does this by itself: the optimizer hears the loss.
        optimizer.observe(train_loss=loss)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(1024, seed=0).repeat().batch(64)
    for batch, targets in batches.take(steps):
        train_step(batch, targets)
    # And this: the model is left with the averaged weights.
    optimizer.finalize_variable_values(model.trainable_variables)
    return float(np.mean((model.predict(x, verbose=0) - y) ** 2))


if __name__ == "__main__":
    print(main())
