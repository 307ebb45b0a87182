"""Meta-training for a Keras model of one's own, from the weights that ship."""

import os

import keras
from sklearn import datasets, model_selection

import export
from lopt_keras import LearnedOptimizer, pretrained, rules, saved_model
from meta import estimators, run_directory, tasks
from meta.outer_loop import OuterLoop

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
    train, validation = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rule, theta, _ = saved_model.read(pretrained.path("digits"))
    rule = rules.get(rule)
    task = tasks.from_keras(make_model, loss, train, validation, batch_size=BATCH)
    steps = EPOCHS * -(-len(train[1]) // BATCH)
    estimator = estimators.get(
        "pes",
        rule,
        task,
        num_particles=8,
        unroll_length=UNROLL,
        horizon=UNROLL * -(-steps // UNROLL),
        outer_split="validation",
    )
    run_directory.claim(out_dir, {"flags": {}, "rule": rules.serialize(rule), "seed": 0})
    loop = OuterLoop(estimator, keras.optimizers.Adam(1e-3), 0, out_dir, initial_theta=theta)
    loop.restore()  # Killed and started again, it goes on where it was.
    loop.run(outer_steps)
    weights = os.path.join(out_dir, "export")
    export.export_checkpoint(out_dir, weights, overwrite=True)

    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(LearnedOptimizer(weights=weights), loss=loss)
    history = model.fit(
        *train, batch_size=BATCH, epochs=EPOCHS, validation_data=validation, verbose=2
    )
    return history.history["val_loss"][-1]


if __name__ == "__main__":
    main()
