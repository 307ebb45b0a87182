"""Several devices by `tf.distribute`: here two halves of one processor, elsewhere GPUs."""

import keras
import tensorflow as tf
from sklearn import datasets

from lopt_keras import LearnedOptimizer


def strategy():
    """All GPUs, or two logical processors where there is none."""
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    (processor,) = tf.config.list_physical_devices("CPU")
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(processor, halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def main(epochs=5):
    """Trains, and returns the losses, one an epoch. Each replica takes half of a batch."""
    x, y = datasets.load_digits(return_X_y=True)
    with strategy().scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Rescaling(1 / 16),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(LearnedOptimizer(), loss=loss)
    return model.fit(x, y, batch_size=64, epochs=epochs, verbose=2).history["loss"]


if __name__ == "__main__":
    main()
