"""Meta-training for a Keras model of one's own, from the weights that ship."""

import keras
from sklearn import datasets, model_selection

from lopt_keras import LearnedOptimizer
from meta import tasks
from meta.training.config import MetaTrainingConfig
from meta.training.run import train

EPOCHS, BATCH, UNROLL = 10, 32, 20


def data():
    """Training and validation data."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype("float32")
    x, x_held_out, y, y_held_out = model_selection.train_test_split(x, y, random_state=0)
    return (x, y), (x_held_out, y_held_out)


def make_model():
    layers = [keras.Input((30,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)]
    return keras.Sequential(layers)


def main(out_dir="out/own", outer_steps=200):
    """Meta-trains, trains with the result, and returns the validation loss at the end."""
    training, validation = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = EPOCHS * -(-len(training[1]) // BATCH)
    config = MetaTrainingConfig(
        out_dir,
        task=tasks.from_keras(make_model, loss, training, validation, batch_size=BATCH),
        rule="factored_mlp",
        initial_weights="digits",
        num_particles=8,
        unroll_length=UNROLL,
        horizon=UNROLL * -(-steps // UNROLL),
        num_outer_steps=outer_steps,
    )
    weights = train(config).export_dir  # Killed and started again, it goes on where it was.

    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(LearnedOptimizer(weights=weights), loss=loss)
    history = model.fit(
        *training, batch_size=BATCH, epochs=EPOCHS, validation_data=validation, verbose=2
    )
    return history.history["val_loss"][-1]


if __name__ == "__main__":
    main()
