"""One cache of compiled programs for the process."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from lopt_keras import LearnedOptimizer, programs, rules

GRADIENT = tf.constant([1.0, -2.0, 3.0])


@pytest.fixture
def counting():
    """A rule of its own for each test, and a list of the times that it was traced."""
    traces = []

    class Counting(rules.SGD):
        def update_tensor(self, theta, state, message, grad, param, signals):
            traces.append(param.shape)
            return super().update_tensor(theta, state, message, grad, param, signals)

    return Counting(learning_rate=0.1), traces


def step(rule, size=3, theta=None, **kwargs):
    """An optimizer after one step, and the variable."""
    optimizer = LearnedOptimizer(weights=theta or rule.init_theta(), rule=rule, **kwargs)
    variable = keras.Variable(np.ones(size))
    optimizer.apply([tf.ones(size)], [variable])
    return optimizer, variable.numpy()


def test_a_second_optimizer_compiles_nothing(counting):
    rule, traces = counting
    first = step(rule)[1]
    again = step(type(rule)(learning_rate=0.1), seed=3, learning_rate=1.0, clipnorm=10.0)[1]
    assert len(traces) == 1
    np.testing.assert_array_equal(first, again)


def test_a_second_compile_of_a_model_compiles_nothing(counting):
    rule, traces = counting
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    counts = []
    for _ in range(3):
        keras.backend.clear_session()
        gc.collect()
        model.compile(LearnedOptimizer(weights=rule.init_theta(), rule=rule), loss="mse")
        model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
        counts.append(len(traces))
    assert counts == [2, 2, 2]


def test_what_may_differ_is_an_argument(counting):
    rule, traces = counting
    theta = rule.init_theta()
    twice = {**theta, "log_learning_rate": theta["log_learning_rate"] + np.log(2.0)}
    moved = {
        name: 1.0 - step(rule, theta=theta, **options)[1][0]
        for name, theta, options in (
            ("once", theta, {}),
            ("twice", twice, {}),
            ("decayed", theta, {"weight_decay": 0.1}),
            ("slower", theta, {"learning_rate": 0.5}),
        )
    }
    assert len(traces) == 1
    assert moved == pytest.approx({"once": 0.1, "twice": 0.2, "decayed": 0.2, "slower": 0.05})


def test_what_a_program_depends_on_is_part_of_its_key(counting):
    rule, traces = counting
    step(rule)
    for other in (
        lambda: step(type(rule)(learning_rate=0.1, nesterov=True)),
        lambda: step(rule, size=4),
        lambda: step(rule, state_dtype="bfloat16"),
    ):
        count = len(traces)
        other()
        assert len(traces) == count + 1


def test_it_is_bounded_and_gives_back_what_nobody_uses(counting, monkeypatch):
    rule, traces = counting
    monkeypatch.setattr(programs, "_kept", type(programs._kept)())
    monkeypatch.setattr(programs, "MOST_KEPT", 2)
    optimizer, _ = step(rule, size=1)
    for size in range(2, 6):
        step(rule, size=size)
    assert len(programs._kept) == 2
    gc.collect()
    mine = [key for key in programs._in_use if key[1] == rule]
    assert len(mine) == 3
    # One that is in use serves others too, also where it is not kept for its own sake.
    step(rule, size=1)
    assert len(traces) == 5
    del optimizer
    step(rule, size=2), step(rule, size=3)
    gc.collect()
    assert len([key for key in programs._in_use if key[1] == rule]) == 2


def test_a_program_first_used_elsewhere_serves_everywhere(counting):
    rule, traces = counting

    optimizer = LearnedOptimizer(weights=rule.init_theta(), rule=rule)
    variable = keras.Variable(np.zeros(3))

    @tf.function
    def in_a_graph():
        with tf.device("CPU:1"):
            optimizer.apply([GRADIENT], [variable])

    optimizer.build([variable])
    in_a_graph()
    optimizer.apply([GRADIENT], [variable])
    assert len(traces) == 1
    # The steps of SGD with momentum 0.9: g, and then 1.9 g.
    np.testing.assert_allclose(variable.numpy(), -0.1 * 2.9 * GRADIENT.numpy(), rtol=1e-5)


def test_a_rule_that_cannot_be_hashed_shares_nothing():
    class Listing(rules.SGD):
        __hash__ = None

    for size in (2, 2):
        optimizer, value = step(Listing(learning_rate=0.1), size=size)
        np.testing.assert_allclose(value, 0.9, rtol=1e-6)
    assert optimizer.rule == Listing(learning_rate=0.1)
