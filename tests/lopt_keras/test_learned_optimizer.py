import warnings

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


def test_a_compiled_model_under_checks_of_numerics():
    tf.debugging.enable_check_numerics()
    try:
        model = fit(make_model(jit_compile=False)).model
    finally:
        tf.debugging.disable_check_numerics()
    expected = fit(make_model(jit_compile=False)).model
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


@pytest.mark.parametrize(
    "learning_rate",
    [1e-3, keras.optimizers.schedules.CosineDecay(0.0, 100, warmup_target=1e-3, warmup_steps=9)],
)
def test_a_learning_rate_as_for_adam_is_warned_of(learning_rate):
    with pytest.warns(UserWarning, match="multiplies the steps .* 1.0, the default"):
        make_optimizer(learning_rate=learning_rate)


@pytest.mark.parametrize("assigned", [1e-3, keras.optimizers.schedules.CosineDecay(1e-3, 10)])
def test_a_learning_rate_that_is_assigned_before_the_first_step_is_looked_at(assigned):
    optimizer = make_optimizer()
    with pytest.warns(UserWarning, match="multiplies the steps .* 1.0, the default"):
        optimizer.learning_rate = assigned
    optimizer.build([keras.Variable([1.0])])
    # Later, a callback may make it as small as it likes.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        optimizer.learning_rate = assigned


@pytest.mark.parametrize("learning_rate", [0.0, 0.3, 1.0, lambda: 1e-3, "cosine"])
def test_other_learning_rates_are_not_warned_of(learning_rate):
    if learning_rate == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(1.0, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_optimizer(learning_rate=learning_rate).build([keras.Variable([1.0])])


@pytest.mark.parametrize("run", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_a_step_in_the_scope_of_a_tape_is_not_recorded(run):
    differentiated = []

    @tf.custom_gradient
    def watched(x):
        def backward(upstream):
            differentiated.append(x.shape)
            return upstream

        return tf.identity(x), backward

    class Watched(rules.SGD):
        def update_tensor(self, theta, state, message, grad, param, signals):
            grad = watched(grad)
            return super().update_tensor(theta, state, message, grad, param, signals)

    rule = Watched(learning_rate=1.0, momentum=0.0)
    optimizer = LearnedOptimizer(weights=rule.init_theta(), rule=rule)
    variable = keras.Variable([3.0])
    optimizer.build([variable])

    def step():
        with tf.GradientTape():
            optimizer.apply([2.0 * variable.value], [variable])

    run(step)()
    # A tape that sees a compiled function called has its derivative compiled at once.
    assert not differentiated
    assert variable.numpy() == [-3.0]


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


# When the task changes.


def online_regression(optimizer_calls):
    """The last losses of two tasks, of a model that is long past the first of them."""
    model = make_model(LearnedOptimizer())
    first = fit(model, epochs=20).history["loss"]
    model.optimizer.iterations.assign(50_000)
    for call in optimizer_calls:
        getattr(model.optimizer, call)()
    second = model.fit(X, 5 - 2 * Y, batch_size=16, epochs=20, verbose=0).history["loss"]
    assert first[-1] < 0.3 * first[0]
    assert int(model.optimizer.iterations) == 50_000 + 80
    return second


def test_after_a_reset_steps_are_of_a_useful_size_again():
    worn_out, reset = online_regression([]), online_regression(["reset"])
    assert worn_out[-1] > 0.5 * worn_out[0]
    assert reset[-1] < 0.3 * reset[0]


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_a_reset_is_a_new_optimizer_for_the_rule_alone(state_dtype):
    rule = rules.Scheduled(RULE)
    options = {"rule": rule, "weights": rule.init_theta(1), "state_dtype": state_dtype}
    optimizer, other = LearnedOptimizer(**options), LearnedOptimizer(**options)
    variable = keras.Variable([1.0, 2.0])
    gradients = [tf.constant([1.0, -1.0]), tf.constant([2.0, 0.5])]
    optimizer.reset()  # Before it is built, nothing is to be done.
    for gradient in gradients:
        optimizer.observe(train_loss=3.0)
        optimizer.apply([gradient], [variable])
    optimizer.observe(train_loss=3.0)
    kept = variable.numpy()
    optimizer.reset()
    np.testing.assert_array_equal(variable.numpy(), kept)
    assert int(optimizer.iterations) == 2
    copy = keras.Variable(kept)
    for gradient in gradients:
        for each, v in ((optimizer, variable), (other, copy)):
            each.observe(train_loss=1.0)
            each.apply([gradient], [v])
    np.testing.assert_array_equal(variable.numpy(), copy.numpy())
    assert int(optimizer.iterations) == 4


# What it is given.


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        (lambda: keras.Variable([1, 2], dtype="int32", name="ids"), "'ids' of dtype int32"),
        (lambda: tf.Variable([1j], name="wave"), "'wave:0' of dtype complex128"),
        (lambda: keras.Variable(np.zeros((3, 0)), name="empty"), r"'empty' of shape \(3, 0\)"),
    ],
)
def test_variables_that_cannot_be_trained_are_named(variable, text):
    optimizer = make_optimizer()
    with pytest.raises(ValueError, match=text):
        optimizer.build([keras.Variable([1.0]), variable()])
    optimizer.build([keras.Variable([1.0])])


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
    state = optimizer.variables[6:]
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


# Options that change.


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("weight_decay", 0.1, 0.5),
        ("weight_decay", None, 0.5),
        ("clipvalue", 1.0, 0.1),
        ("clipnorm", 1.0, None),
        ("loss_scale_factor", 2.0, 4.0),
        ("jit_compile", None, False),
    ],
)
def test_an_option_changed_in_a_loop_is_obeyed(name, before, after, jit_compile):
    rule = rules.SGD(learning_rate=0.1, momentum=0.0)

    def step(optimizer, variable):
        optimizer.apply([tf.constant([3.0, -4.0])], [variable])

    start = {} if name == "jit_compile" else {name: before}
    options = {"weights": None, "rule": rule, "jit_compile": jit_compile}
    optimizer = LearnedOptimizer(**{**options, **start})
    variable = keras.Variable([1.0, 2.0])
    step(optimizer, variable)
    expected = keras.Variable(variable.numpy())
    step(LearnedOptimizer(**{**options, name: after}), expected)
    setattr(optimizer, name, after)
    step(optimizer, variable)
    np.testing.assert_allclose(variable.numpy(), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_decay", 0.5),
        ("clipnorm", 0.1),
        ("clipvalue", 0.1),
        ("global_clipnorm", 0.1),
        ("ema_momentum", 0.5),
        ("ema_overwrite_frequency", 3),
        ("loss_scale_factor", 2.0),
        ("seed", 7),
        ("jit_compile", True),
        ("learning_rate", lambda: 0.5),
        ("learning_rate", keras.optimizers.schedules.CosineDecay(1.0, 100)),
        ("use_ema", True),
        ("gradient_accumulation_steps", 2),
        ("state_dtype", "bfloat16"),
        ("rule", rules.SGD()),
    ],
)
def test_an_option_that_would_not_be_obeyed_cannot_be_changed(name, value):
    model = make_model(make_optimizer(jit_compile=False), jit_compile=False)
    fit(model)
    before = getattr(model.optimizer, name)
    with pytest.raises(AttributeError, match=f"`{name}` cannot be changed"):
        setattr(model.optimizer, name, value)
    # To what it is, it may be set.
    if name != "learning_rate":
        setattr(model.optimizer, name, before)
    fit(model)


def test_exclusions_from_weight_decay_cannot_be_changed_in_a_compiled_step():
    model = make_model(make_optimizer(jit_compile=False, weight_decay=0.1), jit_compile=False)
    fit(model)
    with pytest.raises(AttributeError, match="`exclude_from_weight_decay` cannot be changed"):
        model.optimizer.exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight_decay", -1.0), ("clipnorm", "x"), ("learning_rate", -1.0), ("use_ema", 3)],
)
def test_what_is_assigned_is_checked(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        setattr(make_optimizer(), name, value)


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
        ({"weights": None, "ema_momentum": 1.5}, ValueError, "`ema_momentum`.*1.5"),
        ({"weights": None, "ema_momentum": "x"}, TypeError, "`ema_momentum`.*'x'"),
        ({"weights": None, "ema_overwrite_frequency": 0}, ValueError, "`ema_overwrite.*0"),
        ({"weights": None, "ema_overwrite_frequency": 2.5}, TypeError, "`ema_overwrite.*2.5"),
        ({"weights": None, "gradient_accumulation_steps": 2.5}, TypeError, "`gradient_acc.*2.5"),
        ({"weights": None, "gradient_accumulation_steps": 1}, ValueError, "`gradient_acc.*1"),
        ({"weights": None, "gradient_accumulation_steps": 0}, ValueError, "`gradient_acc.*0"),
        ({"weights": None, "gradient_accumulation_steps": -2}, ValueError, "`gradient_acc.*-2"),
        ({"weights": None, "loss_scale_factor": 0.0}, ValueError, "`loss_scale_factor`.*0.0"),
        ({"weights": None, "loss_scale_factor": -8}, ValueError, "`loss_scale_factor`.*-8"),
        ({"weights": None, "loss_scale_factor": np.inf}, ValueError, "`loss_scale_factor`.*inf"),
        ({"weights": None, "loss_scale_factor": "x"}, TypeError, "`loss_scale_factor`.*'x'"),
        ({"weights": None, "use_ema": "yes"}, TypeError, "`use_ema`.*'yes'"),
        ({"weights": None, "total_steps": 2**40}, ValueError, "`total_steps`.*1099511627776"),
        ({"weights": None, "name": 3}, TypeError, "`name`.*3"),
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
