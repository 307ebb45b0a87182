import keras
import numpy as np
import pytest
import tensorflow as tf

import lopt_keras
from lopt_keras import LearnedOptimizer, rules

# The smallest learned rule: what is tested here does not depend on the rule.
RULE = rules.MLP(
    hidden_size=2, hidden_layers=1, step_mult=0.01, exp_mult=0.1, momentum_decays=(0.9,)
)
THETA = RULE.init_theta(1)
X = np.random.RandomState(0).standard_normal((64, 6)).astype("float32")
Y = X[:, :1] * 2 - X[:, 1:2]


def make_optimizer(**kwargs):
    return LearnedOptimizer(weights=THETA, rule=RULE, **kwargs)


def make_model(optimizer=None, seed=0, **compile_args):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer or make_optimizer(), loss="mse", **compile_args)
    return model


def mean_squared_error(y, prediction):
    return keras.ops.mean(keras.losses.mean_squared_error(y, prediction))


def fit(model, x=X, epochs=1):
    return model.fit(x, Y[: len(x)], batch_size=16, epochs=epochs, shuffle=False, verbose=0)


def values(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# How it is run.


def by_gradient_tape(model):
    for i in range(0, 64, 16):
        with tf.GradientTape() as tape:
            loss = mean_squared_error(Y[i : i + 16], model(X[i : i + 16]))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


@pytest.mark.parametrize(
    "run",
    [
        lambda: fit(make_model(jit_compile=True)).model,
        lambda: fit(make_model(jit_compile=False)).model,
        lambda: fit(make_model(run_eagerly=True)).model,
        lambda: fit(make_model(make_optimizer(jit_compile=False), jit_compile=False)).model,
    ],
    ids=["xla", "graph", "eager", "no_xla_at_all"],
)
def test_every_way_of_running_gives_the_same_weights(run):
    reference = make_model()
    by_gradient_tape(reference)
    model = run()
    assert int(model.optimizer.iterations) == 4
    for a, b in zip(model.variables, reference.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_built_inside_a_tf_function():
    model = make_model()
    expected = make_model()
    by_gradient_tape(expected)
    optimizer = model.optimizer

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = mean_squared_error(y, model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    for i in range(0, 64, 16):
        step(X[i : i + 16], Y[i : i + 16])
    for a, b in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_it_trains():
    adamlike = rules.Adam(learning_rate=0.03)
    model = make_model(LearnedOptimizer(weights=None, rule=adamlike))
    history = fit(model, epochs=20).history["loss"]
    assert history[-1] < 0.3 * history[0]


def test_by_name_in_compile():
    model = make_model("lopt_keras>LearnedOptimizer")
    assert isinstance(model.optimizer, LearnedOptimizer)
    assert model.optimizer.get_config()["rule"] == LearnedOptimizer().get_config()["rule"]


def test_names_are_numbered_as_in_keras():
    keras.backend.clear_session()
    names = [make_optimizer().name, make_optimizer().name, make_optimizer(name="mine").name]
    assert names == ["learned_optimizer", "learned_optimizer_1", "mine"]


def test_learning_rate_multiplies_the_step():
    gradient = tf.constant([1.0, -2.0])
    steps = []
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.5, 1.0])
    for learning_rate in (1.0, 0.5, 2, schedule, lambda: 0.5):
        variable = keras.Variable([0.0, 0.0])
        make_optimizer(learning_rate=learning_rate).apply([gradient], [variable])
        steps.append(variable.numpy())
    for step, factor in zip(steps[1:], (0.5, 2.0, 0.5, 0.5), strict=True):
        np.testing.assert_allclose(step, factor * steps[0], rtol=1e-5)


def test_a_callable_learning_rate_is_called_once_a_step():
    calls = iter([1.0, 0.0])
    optimizer = make_optimizer(learning_rate=lambda: next(calls))
    variables = [keras.Variable([1.0]), keras.Variable([1.0])]
    optimizer.apply([tf.constant([1.0])] * 2, variables)
    np.testing.assert_array_equal(variables[0].numpy(), variables[1].numpy())
    assert next(calls) == 0.0


def test_assigning_the_learning_rate_takes_effect():
    optimizer = make_optimizer()
    variable = keras.Variable([1.0])
    optimizer.apply([tf.constant([1.0])], [variable])
    before = variable.numpy()
    optimizer.learning_rate = 0.0
    optimizer.apply([tf.constant([1.0])], [variable])
    np.testing.assert_array_equal(variable.numpy(), before)


def test_a_rule_that_mixes_tensors_gets_a_summary_of_each():
    class GlobalNormSGD(rules.SGD):
        mixes_tensors = True

        def summarise(self, theta, state, shared, grad, param):
            return state, {"square": keras.ops.sum(keras.ops.square(grad))[None]}

        def coordinate(self, theta, shared, summaries, signals):
            norm = keras.ops.sqrt(sum(summary["square"] for summary in summaries))
            return shared, [{"norm": norm}] * len(summaries)

        def update_tensor(self, theta, state, message, grad, param, signals):
            grad = grad / message["norm"]
            return super().update_tensor(theta, state, message, grad, param, signals)

    rule = GlobalNormSGD(learning_rate=1.0, momentum=0.0)
    optimizer = LearnedOptimizer(weights=rule.init_theta(), rule=rule)
    variables = [keras.Variable([0.0]), keras.Variable([[0.0]])]
    optimizer.apply([tf.constant([3.0]), tf.constant([[4.0]])], variables)
    np.testing.assert_allclose([v.numpy().item() for v in variables], [-0.6, -0.8], rtol=1e-6)


def test_a_program_for_each_shape_not_for_each_tensor():
    optimizer = make_optimizer()
    variables = [keras.Variable([float(i), 1.0]) for i in range(5)] + [keras.Variable([[1.0]])]
    gradients = [tf.constant([1.0, -2.0])] * 5 + [tf.constant([[1.0]])]
    optimizer.apply(gradients, variables)
    assert len(optimizer._programs._programs) == 2
    alone = keras.Variable([3.0, 1.0])
    make_optimizer().apply([gradients[0]], [alone])
    np.testing.assert_array_equal(alone.numpy(), variables[3].numpy())


def test_tensors_of_one_shape_that_a_rule_treats_differently():
    rule = rules.NormalizedMLP(hidden_size=2, step_mult=0.1)
    optimizer = LearnedOptimizer(weights=rule.init_theta(), rule=rule)
    variables = [keras.Variable(np.ones((2, 3)), name=name) for name in ("kernel", "embeddings")]
    gradient = tf.constant([[1.0, -2.0, 3.0], [4.0, -5.0, 6.0]])
    optimizer.apply([gradient] * 2, variables)
    # The first step of Adam has the sign of the gradient.
    np.testing.assert_allclose(variables[1].numpy(), 1 - 0.1 * np.sign(gradient), rtol=1e-4)
    assert np.abs(variables[0].numpy() - variables[1].numpy()).max() > 0.01


# What it is given.


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (2, 3, 4), (2, 3, 2, 4), (2, 1, 3, 2, 4)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_ranks_and_dtypes(shape, dtype):
    rng = np.random.RandomState(0)
    start = rng.standard_normal(shape)
    variable = keras.Variable(start, dtype=dtype)
    exact = keras.Variable(start, dtype="float32")
    optimizer, reference = make_optimizer(jit_compile=False), make_optimizer(jit_compile=False)
    for _ in range(3):
        gradient = rng.standard_normal(shape).astype("float32")
        optimizer.apply([tf.cast(gradient, dtype)], [variable])
        reference.apply([tf.cast(tf.cast(gradient, dtype), "float32")], [exact])
    assert keras.backend.standardize_dtype(variable.dtype) == dtype
    state = optimizer.variables[5:]
    assert {v.dtype for v in state} == {"float32"}
    tolerance = {"float16": 4e-3, "bfloat16": 3e-2}.get(dtype, 1e-5)
    moved = variable.numpy().astype("float64")
    np.testing.assert_allclose(moved, exact.numpy(), rtol=tolerance, atol=tolerance)
    assert np.abs(moved - start).max() > 0


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_state_in_bfloat16(jit_compile):
    rule = rules.FactoredMLP(hidden_size=4, step_mult=0.01)
    theta = rule.init_theta(1)
    shapes = [(40, 30), (30,)]

    def run(state_dtype, seed=0):
        optimizer = LearnedOptimizer(
            weights=theta, rule=rule, state_dtype=state_dtype, seed=seed, jit_compile=jit_compile
        )
        variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
        rng = np.random.RandomState(0)
        for _ in range(20):
            grads = [rng.standard_normal(shape).astype("float32") for shape in shapes]
            optimizer.apply([tf.constant(g) for g in grads], variables)
        return optimizer, variables[0].numpy()

    full, narrow, again, other = (
        run("float32"),
        run("bfloat16"),
        run("bfloat16"),
        run("bfloat16", 1),
    )
    np.testing.assert_array_equal(narrow[1], again[1])
    assert (narrow[1] != other[1]).any()
    distance = np.abs(narrow[1] - full[1]).max()
    assert 0 < distance < 0.1 * np.abs(full[1]).max()
    dtypes = {v.name: v.dtype for v in narrow[0].variables}
    large = [name for name in dtypes if name.endswith(("_m", "_rms", "_v"))]
    assert {dtypes[name] for name in large} == {"bfloat16"}
    assert {v for name, v in dtypes.items() if name.endswith(("_row", "_col"))} == {"float32"}
    kernel = [v for v in narrow[0].variables if v.shape[-2:] == (40, 30)]
    size = sum(keras.ops.size(v) * {"bfloat16": 2, "float32": 4}[v.dtype] for v in kernel)
    assert int(size) == 8 * 40 * 30


def test_sparse_gradients_of_embeddings():
    tokens = np.random.RandomState(0).randint(0, 7, (64, 3))

    def run(densify):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((3,)), keras.layers.Embedding(9, 4), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        optimizer = make_optimizer()
        for i in range(0, 64, 16):
            with tf.GradientTape() as tape:
                prediction = model(tokens[i : i + 16])
                loss = mean_squared_error(Y[i : i + 16], prediction)
            gradients = tape.gradient(loss, model.trainable_variables)
            assert isinstance(gradients[0], tf.IndexedSlices)
            gradients[0] = densify(gradients[0])
            optimizer.apply(gradients, model.trainable_variables)
        return [v.numpy() for v in model.variables]

    assert_equal(run(lambda slices: slices), run(tf.convert_to_tensor))


def test_embeddings_under_fit_with_xla():
    tokens = np.random.RandomState(0).randint(0, 7, (64, 3))
    layers = [keras.Input((3,)), keras.layers.Embedding(9, 4), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(LearnedOptimizer(), loss=loss, jit_compile=True)
    before = model.layers[0].embeddings.numpy()
    model.fit(tokens, tokens[:, 0] > 3, verbose=0)
    assert (model.layers[0].embeddings.numpy() != before).any()


def test_frozen_layers_stay():
    model = make_model()
    model.layers[0].trainable = False
    model.compile(make_optimizer(), loss="mse")
    frozen = [v.numpy() for v in model.layers[0].variables]
    live = [v.numpy() for v in model.layers[1].variables]
    fit(model)
    assert_equal(frozen, [v.numpy() for v in model.layers[0].variables])
    assert all((a != v.numpy()).any() for a, v in zip(live, model.layers[1].variables, strict=True))


def test_a_variable_without_a_gradient_is_left_alone():
    used, unused = keras.Variable([1.0, 2.0], name="used"), keras.Variable([3.0], name="unused")
    optimizer = make_optimizer()
    with pytest.warns(UserWarning, match="unused"):
        optimizer.apply([tf.constant([1.0, 1.0]), None], [used, unused])
    assert unused.numpy() == [3.0]
    optimizer.apply([tf.constant([1.0, 1.0]), tf.constant([1.0])], [used, unused])
    assert unused.numpy() != [3.0]


def test_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make_model(LearnedOptimizer(weights=None, rule=rules.Adam(learning_rate=0.03)))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        history = fit(model, epochs=20).history["loss"]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert history[-1] < 0.5 * history[0]


# What must never happen.


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jit_compile": False},
        {"weight_decay": 0.1},
        {"clipnorm": 1.0},
        {"global_clipnorm": 1.0},
        {"clipvalue": 0.5},
        {"use_ema": True, "ema_overwrite_frequency": 3},
    ],
    ids=str,
)
def test_a_step_with_an_unusable_gradient_changes_only_the_counter(bad, options):
    model = make_model(make_optimizer(**options))
    fit(model, X[:32])
    before = values(model)
    poisoned = X[:16].copy()
    poisoned[3, 2] = bad
    fit(model, poisoned)
    assert model.optimizer.skipped_steps == 1
    after = values(model)
    changed = [
        v.name
        for v, a, b in zip(
            [*model.variables, *model.optimizer.variables], before, after, strict=True
        )
        if (a != b).any()
    ]
    assert changed == ["skipped_steps"]
    fit(model, X[32:48])
    assert int(model.optimizer.iterations) == 3
    assert all(np.isfinite(v).all() for v in values(model))
    assert (values(model)[0] != after[0]).any()


def test_a_gradient_too_large_to_be_squared_is_left_out():
    optimizer, variable = make_optimizer(), keras.Variable([1.0, 2.0])
    for i, value in enumerate((1.0, 1e25, 1.0)):
        optimizer.apply([tf.constant([value, 1.0])], [variable])
        assert optimizer.skipped_steps == int(i > 0)
        assert np.isfinite([v.numpy().sum() for v in optimizer.variables]).all()
    assert np.isfinite(variable.numpy()).all()


def test_an_accumulation_leaves_an_unusable_micro_batch_out():
    gradients = [[1.0, 2.0], [np.nan, 0.0], [3.0, 4.0], [2.0, 2.0]]
    accumulating = make_optimizer(gradient_accumulation_steps=2)
    variable, expected = keras.Variable([1.0, 1.0]), keras.Variable([1.0, 1.0])
    for gradient in gradients:
        accumulating.apply([tf.constant(gradient)], [variable])
    make_optimizer().apply([tf.constant([2.0, 3.0])], [expected])
    np.testing.assert_allclose(variable.numpy(), expected.numpy(), rtol=1e-6)
    assert accumulating.skipped_steps == 1


# What every Keras optimizer does.


@pytest.mark.parametrize(
    "options", [{"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.1}], ids=str
)
def test_clipping_and_weight_decay_as_in_keras(options):
    rule = rules.SGD(learning_rate=0.1, momentum=0.9)
    mine = LearnedOptimizer(weights=None, rule=rule, learning_rate=0.5, weight_decay=0.2, **options)
    reference = keras.optimizers.SGD(0.05, momentum=0.9, **options)
    gradients = [tf.constant([[3.0, -4.0]]), tf.constant([1.0])]
    first = [keras.Variable([[1.0, 2.0]]), keras.Variable([0.5])]
    second = [keras.Variable([[1.0, 2.0]]), keras.Variable([0.5])]
    for _ in range(5):
        mine.apply(gradients, first)
        for variable in second:
            variable.assign(variable * (1 - 0.2 * 0.5))
        reference.apply(gradients, second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)


@pytest.mark.parametrize("frequency", [None, 2])
def test_moving_average_as_in_keras(frequency):
    options = {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": frequency}
    rule = rules.SGD(learning_rate=0.1, momentum=0.9)
    mine = LearnedOptimizer(weights=None, rule=rule, **options)
    reference = keras.optimizers.SGD(0.1, momentum=0.9, **options)
    first, second = keras.Variable([1.0, 2.0]), keras.Variable([1.0, 2.0])
    for i in range(5):
        gradient = tf.constant([1.0 + i, -1.0])
        mine.apply([gradient], [first])
        reference.apply([gradient], [second])
        np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-5)
    mine.finalize_variable_values([first])
    reference.finalize_variable_values([second])
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-5)


# Saving.


def test_a_schedule_survives_the_config():
    schedule = keras.optimizers.schedules.CosineDecay(1.0, 100)
    duplicate = LearnedOptimizer.from_config(
        make_optimizer(learning_rate=schedule, name="x").get_config()
    )
    assert duplicate.get_config() == make_optimizer(learning_rate=schedule, name="x").get_config()


# Where the weights come from.


def test_random_weights_come_from_the_seed():
    first, same, other = (LearnedOptimizer(weights=None, seed=seed) for seed in (3, 3, 4))
    assert first.rule == rules.FactoredMLP()
    assert_equal(first.theta.values(), same.theta.values())
    assert (first.theta["w0"] != other.theta["w0"]).any()


def test_theta_is_a_copy():
    optimizer = make_optimizer()
    optimizer.theta["w0"][:] = 0
    assert_equal(optimizer.theta.values(), [THETA[name] for name in optimizer.theta])


def test_the_default_needs_nothing_and_trains():
    assert "default" in lopt_keras.list_pretrained()
    model = make_model(LearnedOptimizer())
    history = fit(model, epochs=50).history["loss"]
    assert history[-1] < 0.1 * history[0]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"weights": "nope"}, ValueError, "`weights`.*'default'.*'nope'"),
        ({"weights": 3}, TypeError, "`weights`.*3"),
        ({"weights": THETA}, ValueError, "`rule`"),
        ({"weights": {}, "rule": "mlp"}, ValueError, "missing"),
        ({"weights": THETA, "rule": "mlp"}, ValueError, "theta does not fit"),
        ({"weights": None, "rule": "nope"}, ValueError, "`rule`.*'nope'"),
        ({"weights": None, "rule": 3}, TypeError, "`rule`.*3"),
        ({"weights": None, "learning_rate": -1.0}, ValueError, "`learning_rate`.*-1.0"),
        ({"weights": None, "learning_rate": float("nan")}, ValueError, "`learning_rate`.*nan"),
        ({"weights": None, "learning_rate": "x"}, ValueError, "`learning_rate`.*x"),
        ({"weights": None, "total_steps": 0}, ValueError, "`total_steps`.*0"),
        ({"weights": None, "total_steps": 1.5}, TypeError, "`total_steps`.*1.5"),
        ({"weights": None, "weight_decay": -0.1}, ValueError, "`weight_decay`.*-0.1"),
        ({"weights": None, "clipnorm": "x"}, TypeError, "`clipnorm`.*'x'"),
        ({"weights": None, "seed": -1}, ValueError, "`seed`.*-1"),
        ({"weights": None, "jit_compile": 1}, TypeError, "`jit_compile`.*1"),
        ({"weights": None, "state_dtype": "float16"}, ValueError, "`state_dtype`.*'float16'"),
        ({"weights": None, "ema_momentum": 2.0, "use_ema": True}, ValueError, "`ema_momentum`"),
        ({"weights": None, "nope": 1}, ValueError, "nope"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        LearnedOptimizer(**arguments)


# Several devices.


def test_mirrored_strategy_equals_one_device_with_the_joint_batch(mirrored_strategy):
    assert mirrored_strategy.num_replicas_in_sync == 2
    with mirrored_strategy.scope():
        distributed = make_model()
    single = make_model()
    fit(distributed, epochs=2)
    fit(single, epochs=2)
    for a, b in zip(distributed.variables, single.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)
    poisoned = X[:16].copy()
    poisoned[3, 2] = np.nan
    before = [v.numpy() for v in distributed.variables]
    fit(distributed, poisoned)
    assert distributed.optimizer.skipped_steps == 1
    assert_equal(before, [v.numpy() for v in distributed.variables])
