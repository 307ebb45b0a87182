import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import loss_and_gradient

from lopt_keras import rules
from meta import estimators, random, tasks

SEED = random.seed(4)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(size, seed=0):
    rng = np.random.RandomState(seed)
    inputs = rng.standard_normal((size, 3))
    return inputs, rng.randint(0, 2, size)


def model(*layers, regularizer=None):
    first = keras.layers.Dense(4, activation="tanh", kernel_regularizer=regularizer)
    return keras.Sequential([keras.Input((3,)), first, *layers, keras.layers.Dense(2)])


def make_task(make_model=model, loss=CROSS_ENTROPY, **kwargs):
    arguments = {"batch_size": 8, "num_starts": 3, **kwargs}
    return tasks.from_keras(make_model, loss, data(40), data(20, 1), **arguments)


@pytest.mark.parametrize("regularizer", [None, keras.regularizers.L2(0.1)])
def test_loss_and_gradient_are_those_of_the_keras_model(regularizer):
    task = make_task(lambda: model(regularizer=regularizer))
    params = [p + 0.1 * random.normal(p.shape, SEED) for p in task.init(SEED, 2, None)]
    inputs, labels = task.batch("train", SEED, 2, None)
    compiled = tf.function(loss_and_gradient, jit_compile=True, autograph=False)
    losses, grads = compiled(task, params, (inputs, labels))
    for i in range(2):
        twin = model(regularizer=regularizer)
        twin.set_weights([p[i].numpy() for p in params])
        with tf.GradientTape() as tape:
            loss = CROSS_ENTROPY(labels[i], twin(inputs[i])) + sum(twin.losses)
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        expected = tape.gradient(loss, [v.value for v in twin.trainable_variables])
        for ours, theirs in zip(grads, expected, strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-6)
        twin.compile(loss=CROSS_ENTROPY)
        reported = twin.evaluate(inputs[i], labels[i], verbose=0)
        np.testing.assert_allclose(losses[i], reported, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "mean_absolute_error", lambda y, z: (y - z) ** 4])
def test_losses_by_name_or_function_are_keras_own(loss):
    def regressor():
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])

    task = tasks.from_keras(regressor, loss, data(40), data(20), num_starts=1)
    params = task.init(SEED, 1, None)
    inputs, targets = task.batch("train", SEED, 1, None)
    twin = regressor()
    twin.set_weights([p[0].numpy() for p in params])
    twin.compile(loss=loss)
    expected = twin.evaluate(inputs[0], targets[0], verbose=0)
    np.testing.assert_allclose(task.loss(params, (inputs, targets), None), [expected], rtol=1e-5)


@pytest.mark.parametrize("cloned", [False, True])
def test_starts_are_the_initializers_and_the_same_each_time(cloned):
    def kernel(task, number):
        return task.starts[0][number].numpy()

    original = model()
    weights = original.get_weights()
    first, again = (make_task(original if cloned else model) for _ in range(2))
    assert [s.shape[0] for s in first.starts] == [3] * 4
    for number in range(3):
        np.testing.assert_array_equal(kernel(first, number), kernel(again, number))
        assert 0.2 < np.abs(kernel(first, number)).max() <= np.sqrt(6 / 7)
    assert (kernel(first, 0) != kernel(first, 1)).all()
    for ours, theirs in zip(original.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    drawn = first.init(SEED, 50, None)[0].numpy()
    assert {start.tobytes() for start in drawn} == {kernel(first, i).tobytes() for i in range(3)}


def test_making_a_task_leaves_global_randomness_alone():
    np.random.seed(1)
    expected = np.random.random_sample()
    np.random.seed(1)
    make_task()
    assert np.random.random_sample() == expected


def test_batches_come_from_their_split():
    task = tasks.from_keras(model, CROSS_ENTROPY, data(40), data(20, 1), data(10, 2))
    for split, (inputs, labels) in {"train": data(40), "test": data(10, 2)}.items():
        pairs = {x.tobytes(): y for x, y in zip(inputs.astype("float32"), labels, strict=True)}
        x, y = task.batch(split, SEED, 2, None)
        assert x.shape == (2, 32, 3)
        for one, label in zip(x.numpy().reshape(-1, 3), y.numpy().ravel(), strict=True):
            assert pairs[one.tobytes()] == label
    # Without test data, the validation data are.
    test, validation = (make_task().batch(s, SEED, 1, None) for s in ("test", "validation"))
    np.testing.assert_array_equal(test[0], validation[0])


def test_models_may_have_many_inputs_and_frozen_layers():
    def many_inputs():
        a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
        x = keras.layers.Concatenate()([a, b])
        out = keras.layers.Dense(2, kernel_initializer="ones", trainable=False)
        return keras.Model({"a": a, "b": b}, out(keras.layers.Dense(4)(x)))

    x, y = data(40)
    pair = ({"b": x[:, :1], "a": x}, y)
    task = tasks.from_keras(many_inputs, CROSS_ENTROPY, pair, pair, num_starts=2)
    params = task.init(SEED, 2, None)
    assert [p.shape[1:] for p in params] == [(4, 4), (4,)]
    inputs, labels = task.batch("train", SEED, 2, None)
    np.testing.assert_array_equal(inputs["a"][..., :1], inputs["b"])
    # The last layer adds all up: both classes are equally probable.
    np.testing.assert_allclose(task.loss(params, (inputs, labels), None), np.log(2), rtol=1e-5)


@pytest.mark.parametrize("name", ["pes", "pathwise"])
def test_estimators_work_with_it(name):
    rule, task = rules.MLP(hidden_size=4), make_task()
    theta = {key: tf.constant(value) for key, value in rule.init_theta().items()}
    estimator = estimators.get(name, rule, task, num_particles=2, unroll_length=2)

    @tf.function(jit_compile=True, autograph=False)
    def estimate():
        state = estimator.init_state(theta, random.seed(0))
        return estimator.estimate(theta, state, random.seed(1))

    gradient = estimate().gradient
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert any(g.numpy().any() for g in gradient.values())


def test_what_cannot_be_a_task_is_named():
    def random_frozen():
        return model(keras.layers.Dense(4, trainable=False))

    class Subclassed(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.layer = keras.layers.Dense(size)

        def call(self, x):
            return self.layer(x)

    subclassed = Subclassed(2)
    subclassed(np.zeros((1, 3)))
    x, y = data(10)
    for arguments, text in (
        ({"make_model": lambda: model(keras.layers.Dropout(0.5))}, "`model`.*state.*seed"),
        ({"make_model": lambda: model(keras.layers.BatchNormalization())}, "`model`.*moving_mean"),
        ({"make_model": random_frozen}, "`model`.*not trained.*differ"),
        ({"make_model": subclassed}, "`model` must be a function"),
        ({"make_model": lambda: Subclassed(2)}, "`model` must be built"),
        ({"make_model": lambda: "nope"}, "`model`.*'nope'"),
        ({"make_model": lambda: model().layers}, "`model`.*Dense"),
        ({"loss": 3}, "`loss`.*3"),
        ({"batch_size": 0}, "`batch_size`.*0"),
        ({"num_starts": 0}, "`num_starts`.*0"),
        ({"test": (x, y[:5])}, r"`test`.*\[\[10\], \[5\]\]"),
        ({"test": (x[:0], y[:0])}, "`test`.*at least one"),
        ({"test": x}, "`test` must be a pair"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            make_task(**arguments)
