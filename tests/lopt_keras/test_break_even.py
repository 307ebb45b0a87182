"""Trainings that are too short for compilation to pay."""

import keras
import numpy as np
import pytest

from lopt_keras import LearnedOptimizer, break_even, callbacks, programs, rules

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 6)).astype("float32")
Y = X[:, :1] ** 2


@pytest.fixture
def threshold(monkeypatch):
    """Compilation pays from ten steps on."""
    monkeypatch.setattr(break_even, "num_steps", lambda shapes: 10)


@pytest.fixture
def compiled(monkeypatch):
    """A list with an entry for each trace of a step that uses XLA."""
    seen, run = [], programs.Programs.run
    monkeypatch.setattr(programs.Programs, "run", lambda *args: seen.append(1) or run(*args))
    return seen


def make_model(**options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(LearnedOptimizer(**options), loss="mse", jit_compile=False)
    return model


def fit(model, epochs, told=True, also=()):
    """Four steps an epoch."""
    watch = [callbacks.Horizon(), *also] if told else also
    model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0, callbacks=list(watch))
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def assert_equal(expected, values):
    for a, b in zip(expected, values, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shapes", "low", "high"),
    [
        ([(64, 32), (32,), (32, 10), (10,)], 500, 1000),
        ([(784, 512), (512,), (512, 512), (512,), (512, 10), (10,)], 150, 250),
        ([(1000, 1000)] * 25, 5, 20),
    ],
    ids=["tiny", "mlp", "large"],
)
def test_the_larger_the_model_the_sooner_compilation_pays(shapes, low, high):
    assert low < break_even.num_steps(shapes) < high


@pytest.mark.parametrize(
    ("epochs", "told", "options", "expected"),
    [
        (2, True, {}, False),
        (3, True, {}, True),
        (2, False, {}, True),
        (2, False, {"total_steps": 8}, True),
        (2, True, {"jit_compile": True}, True),
        (3, True, {"jit_compile": False}, False),
        (3, True, {"gradient_accumulation_steps": 2}, False),
        (2, True, {"weights": None, "rule": rules.SGD()}, True),
    ],
)
def test_a_short_training_of_known_length_goes_without_xla(
    threshold, compiled, epochs, told, options, expected
):
    fit(make_model(**options), epochs, told)
    assert bool(compiled) == expected


def test_the_short_training_is_that_without_xla(threshold):
    short = fit(make_model(), 2)
    uncompiled = make_model(jit_compile=False)
    assert_equal(fit(uncompiled, 2)[:4], short[:4])


def test_each_fit_is_looked_at_anew(threshold, compiled):
    model = make_model()
    fit(model, 1)
    assert not compiled
    fit(model, 3)
    assert compiled
    before = len(compiled)
    fit(model, 3)
    assert len(compiled) == before  # Not traced again.
    fit(model, 1)
    fit(model, 1, told=False)
    assert len(compiled) == before


def test_a_training_without_a_known_length_is_compiled(threshold, compiled):
    def batches():
        for i in range(0, len(X), 16):
            yield X[i : i + 16], Y[i : i + 16]

    model = make_model()
    fit(model, 1)
    model.fit(batches(), epochs=1, verbose=0, callbacks=[callbacks.Horizon()])
    assert compiled


def test_weights_of_a_longer_training_do_not_hide_what_was_traced(threshold, compiled, tmp_path):
    long, short = make_model(), make_model()
    fit(long, 3)
    fit(short, 1)
    long.save_weights(tmp_path / "x.weights.h5")
    short.load_weights(tmp_path / "x.weights.h5")
    before = len(compiled)
    fit(short, 3)
    assert len(compiled) > before


@pytest.mark.parametrize(("is_built", "jit_compile"), [(False, False), (True, True)])
def test_a_model_not_yet_built_or_compiled_as_a_whole_is_left_alone(
    threshold, compiled, is_built, jit_compile
):
    model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(1)])
    if is_built:
        model.build((None, 6))
    model.compile(LearnedOptimizer(), loss="mse", jit_compile=jit_compile)
    fit(model, 1)
    assert compiled


def test_a_training_resumed_for_the_epochs_that_are_left(threshold, tmp_path):
    expected = fit(make_model(), 3)
    stop = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit(make_model(), 3, also=[stop])
    assert_equal(expected, fit(keras.models.load_model(tmp_path / "2.keras"), 1))


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_killed_training_continues_as_it_began(threshold, tmp_path, epochs):
    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                raise KeyboardInterrupt

    def backup(**kwargs):
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", **kwargs)

    expected = fit(make_model(), epochs)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), epochs, also=[Kill(), backup(delete_checkpoint=False)])
    assert_equal(expected, fit(make_model(), epochs, also=[backup()]))


@pytest.mark.parametrize("how", ["model", "weights"])
def test_a_saved_choice_holds(threshold, compiled, tmp_path, how):
    model = make_model()
    fit(model, 1)
    if how == "model":
        model.save(tmp_path / "x.keras")
        other = keras.models.load_model(tmp_path / "x.keras")
    else:
        model.save_weights(tmp_path / "x.weights.h5")
        other = make_model()
        other.optimizer.build(other.trainable_variables)
        other.load_weights(tmp_path / "x.weights.h5")
    assert_equal(fit(model, 1, told=False), fit(other, 1, told=False))
    assert not compiled
