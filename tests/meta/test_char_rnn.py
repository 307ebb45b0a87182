import keras
import numpy as np
import pytest
import tensorflow as tf
from meta.tasks.networks import recurrence

from meta import datasets, random, tasks

LAYERS = {"rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}


@pytest.mark.parametrize("cell", recurrence.CELLS)
def test_a_recurrent_layer_is_that_of_keras(cell):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 7, 4)).astype("float32")
    layers = [LAYERS[cell](5, return_sequences=True) for _ in range(2)]
    weights = []
    for layer in layers:
        layer.build((None, 7, 4))
        kernel, recurrent, bias = (
            rng.normal(size=w.shape).astype("float32") for w in layer.weights
        )
        layer.set_weights([kernel, recurrent, bias])
        biases = bias if cell == "gru" else (bias, 0 * bias)
        weights.append((kernel, biases[0], recurrent, biases[1]))
    stacked = [tf.stack(w) for w in zip(*weights, strict=True)]
    ours = recurrence.recurrent_layer(tf.constant(x), cell, stacked)
    for particle, layer in enumerate(layers):
        np.testing.assert_allclose(ours[particle], layer(x[particle]), atol=2e-6)
    if cell != "gru":
        alike = recurrence.recurrent_layer(tf.constant(x), cell, [*stacked[:3], None])
        np.testing.assert_allclose(alike, ours, atol=1e-6)


def test_the_forget_gate_starts_open():
    layer = keras.layers.LSTM(3)
    layer.build((None, 7, 4))
    np.testing.assert_array_equal(recurrence.forget_bias(3), layer.weights[2])
    task = tasks.get("char_rnn", cell="lstm", hidden_size=3)
    setting = task.draw(random.seed(1), 2)
    biases = [p[0] for p in task.init(random.seed(2), 2, setting) if p.shape[1:] == (12,)]
    np.testing.assert_array_equal(biases, [layer.weights[2]])


@pytest.mark.parametrize("cell", recurrence.CELLS)
def test_it_learns_the_frequencies_of_characters_and_more(cell):
    task = tasks.get("char_rnn", cell=cell, hidden_size=16)
    setting = task.draw(random.seed(1), 1)
    params = task.init(random.seed(2), 1, setting)
    optimizer = keras.optimizers.Adam(0.02)
    variables = [tf.Variable(p) for p in params]

    @tf.function
    def step(seed):
        with tf.GradientTape() as tape:
            loss = task.loss(variables, task.batch("train", seed, 1, setting), setting)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss[0]

    optimizer.build(variables)
    losses = [float(step(random.seed(i))) for i in range(150)]
    text = datasets.load_text("prose").train
    fractions = np.bincount(text) / len(text)
    entropy = -np.sum(fractions[fractions > 0] * np.log(fractions[fractions > 0]))
    assert abs(losses[0] - np.log(task.num_characters)) < 0.5
    assert np.mean(losses[-20:]) < entropy - 0.1


def test_windows_are_the_text():
    task = tasks.get("char_rnn", sequence_length=12, batch_size=40)
    setting = task.draw(random.seed(1), 2)
    for split in datasets.SPLITS:
        text = datasets.load_text("prose").split(split).astype("uint8").tobytes()
        read, following = task.batch(split, random.seed(2), 2, setting)
        np.testing.assert_array_equal(read[..., 1:], following[..., :-1])
        windows = {row.tobytes() for row in read.numpy().astype("uint8").reshape(-1, 12)}
        assert len(windows) > 70
        assert all(window in text for window in windows)


def test_noise_changes_what_is_read_in_training_only():
    arguments = {"sequence_length": 32, "batch_size": 64}
    noisy = tasks.get("char_rnn", character_noise=0.25, **arguments)
    plain = tasks.get("char_rnn", **arguments)
    for split, fraction in (("train", 0.25), ("validation", 0.0), ("test", 0.0)):
        batches = [
            task.batch(split, random.seed(2), 2, task.draw(random.seed(1), 2))
            for task in (noisy, plain)
        ]
        np.testing.assert_array_equal(batches[0][1], batches[1][1])
        changed = np.mean(batches[0][0] != batches[1][0])
        assert abs(changed - fraction) < 0.03


@pytest.mark.parametrize(
    ("argument", "value"), [("cell", "elman"), ("hidden_size", 0), ("sequence_length", 10**9)]
)
def test_what_does_not_fit_is_named(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*{value}"):
        tasks.get("char_rnn", **{argument: value})
