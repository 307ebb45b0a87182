import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from lopt_keras import LearnedOptimizer, rules
from lopt_keras.rules import recurrent

VECTORS = pathlib.Path(__file__).parent.parent / "vectors"
REFERENCES = {
    "mlp": rules.MLP(step_mult=0.1, exp_mult=0.1),
    "factored_mlp_h4": rules.FactoredMLP(hidden_size=4, step_mult=0.1, exp_mult=0.1),
    "factored_mlp_h32": rules.FactoredMLP(hidden_size=32, step_mult=0.1, exp_mult=0.1),
    "hierarchical": rules.Hierarchical(step_mult=0.1, exp_mult=0.1),
    "normalized_mlp": rules.NormalizedMLP(step_mult=0.01, orthogonalize=False),
    "normalized_mlp_orthogonal": rules.NormalizedMLP(step_mult=0.01),
}
HANDCRAFTED = [
    rules.SGD(learning_rate=0.1, momentum=0.9),
    rules.SGD(learning_rate=0.1, momentum=0.8, nesterov=True),
    rules.Adam(learning_rate=0.01, beta_1=0.8, beta_2=0.99, epsilon=1e-5),
    rules.AdamW(learning_rate=0.01, weight_decay=0.1),
    rules.RMSprop(learning_rate=0.01, rho=0.8, epsilon=1e-5),
    rules.Nadam(learning_rate=0.01, beta_1=0.8, beta_2=0.99, epsilon=1e-5),
    rules.Lion(learning_rate=0.01, beta_1=0.8, beta_2=0.95),
    rules.Muon(learning_rate=0.01, momentum=0.9, weight_decay=0.1, adam_weight_decay=0.2),
    rules.ScheduleFreeAdamW(learning_rate=0.01, beta_1=0.8, beta_2=0.99),
    rules.CosineAdamW(learning_rate=0.01, weight_decay=0.1, warmup=0.3),
]
# Of different formulas each.
LEARNED = [
    rules.MLP(hidden_size=4),
    rules.FactoredMLP(hidden_size=4),
    rules.NormalizedMLP(hidden_size=4, flatten_filters=True, start="momentum", noise_scaled=True),
    rules.Hierarchical(hidden_size=4, lstm_size=4, decays=(0.5, 0.9)),
    rules.Recurrent(hidden_size=3, hidden_layers=2, log_sign=True),
    rules.LearnedHyperparameters(hidden_size=4),
    rules.Scheduled("adam", hidden_size=4, min_parameter_scale=0.1, max_parameter_scale=0.3),
    rules.DirectionMixture(hidden_size=4),
]
# Others with these formulas, in other combinations.
VARIANTS = [
    rules.NormalizedMLP(hidden_size=4),
    rules.NormalizedMLP(hidden_size=4, orthogonalize=False, adam_fallback=False),
    rules.NormalizedMLP(hidden_size=4, start="muon", adam_fallback=False),
    rules.Recurrent(hidden_size=4),
    rules.Scheduled("normalized_mlp", hidden_size=4),
    rules.Scheduled(rules.Hierarchical(hidden_size=4, lstm_size=4)),
]
ALL_RULES = [*LEARNED, *VARIANTS, *HANDCRAFTED]


def load_vectors(name):
    with np.load(VECTORS / f"{name}.npz") as file:
        arrays = dict(file)
    theta = {k.removeprefix("theta/"): v for k, v in arrays.items() if k.startswith("theta/")}
    names = [k.removeprefix("params/0/") for k in arrays if k.startswith("params/0/")]
    return arrays, theta, names


def published_signals(arrays, i):
    """The losses that the published implementation heard before and in step i."""
    names = {"train_loss": f"loss/{i}", "validation_loss": f"valid_loss_before_step/{i}"}
    return {name: tf.constant(arrays[key])[None] for name, key in names.items() if key in arrays}


def apply(rule, theta, params, gradients, heard=None, jit_compile=True):
    """Parameters after each step of a rule with particle axis.

    Args:
        heard: for each step, a dict of the signals that are known.
        jit_compile: whether under XLA, whose compilation takes seconds.
    """
    theta = {name: tf.constant(value) for name, value in theta.items()}
    state = rule.init_state(theta, params)
    particles = params[0].shape[0]
    silence = {name: tf.fill([particles], np.nan) for name in rules.Signals._fields[1:]}

    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(params, state, grads, i, known):
        signals = rules.Signals.silent(tf.fill([particles], i), **known)
        updates, state = rule.update(theta, state, grads, params, signals)
        return [p + u for p, u in zip(params, updates, strict=True)], state

    history = []
    for i, grads in enumerate(gradients):
        known = {**silence, **(heard[i] if heard else {})}
        params, state = step(params, state, grads, tf.constant(i), known)
        history.append([p.numpy() for p in params])
    return history


def assert_published(values, arrays, i, names):
    for n, value in zip(names, values, strict=True):
        expected = arrays[f"params/{i + 1}/{n}"]
        # Relative to each entry, except next to zero, where parameters cancel.
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=n)


@pytest.mark.parametrize("name", REFERENCES)
def test_reproduces_the_published_implementation(name):
    arrays, published_theta, names = load_vectors(name)
    rule = REFERENCES[name]
    theta = {k: v[None] for k, v in rule.from_reference(published_theta).items()}
    params = [tf.constant(arrays[f"params/0/{n}"][None]) for n in names]
    gradients = [[tf.constant(arrays[f"grads/{i}/{n}"][None]) for n in names] for i in range(8)]
    heard = [published_signals(arrays, i) for i in range(8)]
    for i, values in enumerate(apply(rule, theta, params, gradients, heard)):
        assert_published([value[0] for value in values], arrays, i, names)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_keras_optimizer_reproduces_the_published_implementation(name):
    arrays, published_theta, names = load_vectors(name)
    rule = REFERENCES[name]
    optimizer = LearnedOptimizer(weights=rule.from_reference(published_theta), rule=rule)
    variables = [keras.Variable(arrays[f"params/0/{n}"]) for n in names]
    for i in range(8):
        if known := published_signals(arrays, i):
            optimizer.observe(**{name: value[0] for name, value in known.items()})
        optimizer.apply([tf.constant(arrays[f"grads/{i}/{n}"]) for n in names], variables)
        assert_published([v.numpy() for v in variables], arrays, i, names)


def keras_optimizer(rule, total_steps):
    """Keras's optimizer of the same name, or with the same schedule."""
    config = rule.get_config()
    if not isinstance(rule, rules.CosineAdamW):
        return getattr(keras.optimizers, type(rule).__name__)(**config)
    warmup_steps = int(config.pop("warmup") * total_steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        total_steps - warmup_steps,
        warmup_target=config.pop("learning_rate"),
        warmup_steps=warmup_steps,
    )
    return keras.optimizers.AdamW(schedule, **config)


@pytest.mark.parametrize(
    "rule", [r for r in HANDCRAFTED if not isinstance(r, rules.ScheduleFreeAdamW)], ids=repr
)
def test_hand_designed_rules_reproduce_keras(rule):
    rng = np.random.RandomState(0)
    shapes = [(), (5,), (4, 6), (3, 3, 2, 4)]
    start = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    reference = keras_optimizer(rule, total_steps=20)
    variables = [keras.Variable(value) for value in start]
    gradients = [
        [tf.constant(rng.standard_normal(shape).astype("float32")) for shape in shapes]
        for _ in range(20)
    ]
    theta = {name: value[None] for name, value in rule.init_theta().items()}
    params = [tf.constant(value[None]) for value in start]
    particle = [[g[None] for g in grads] for grads in gradients]
    history = apply(rule, theta, params, particle, [{"total_steps": tf.constant([20.0])}] * 20)
    for grads, params in zip(gradients, history, strict=True):
        reference.apply(grads, variables)
        for variable, param in zip(variables, params, strict=True):
            np.testing.assert_allclose(param[0], variable.numpy(), rtol=1e-5, atol=1e-6)


def test_schedule_free_adamw_reproduces_its_algorithm():
    rule = rules.ScheduleFreeAdamW(learning_rate=0.01, beta_1=0.8, beta_2=0.99, epsilon=1e-5)
    gradients = np.random.RandomState(0).standard_normal((30, 5))
    theta = {name: value[None] for name, value in rule.init_theta().items()}
    given = [[tf.constant(g[None], tf.float32)] for g in gradients]
    history = apply(rule, theta, [tf.ones((1, 5))], given)
    # Defazio et al., arXiv 2405.15682, algorithm 1, in float64.
    z, x, v = np.ones(5), np.ones(5), np.zeros(5)
    for t, (g, (param,)) in enumerate(zip(gradients, history, strict=True), start=1):
        v = 0.99 * v + 0.01 * g**2
        z = z - 0.01 * g / (np.sqrt(v / (1 - 0.99**t)) + 1e-5)
        x = (1 - 1 / t) * x + z / t
        np.testing.assert_allclose(param[0], 0.2 * z + 0.8 * x, rtol=1e-5)


def test_a_schedule_without_horizon_is_none():
    gradients = [[tf.constant([[1.0, -2.0]])], [tf.constant([[0.5, 3.0]])]]
    results = []
    for rule in (rules.AdamW(learning_rate=0.1), rules.CosineAdamW(learning_rate=0.1)):
        theta = {name: value[None] for name, value in rule.init_theta().items()}
        results.append(apply(rule, theta, [tf.ones((1, 2))], gradients)[-1][0])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_particles_do_not_interact(rule):
    rng = np.random.RandomState(1)
    thetas = [rule.check_theta(rule.init_theta(seed)) for seed in range(3)]
    for i, theta in enumerate(thetas):
        for name in theta:
            theta[name] = theta[name] + np.float32(0.01 * i)
    shapes = [(5,), (4, 6)]
    params = [rng.standard_normal((3, *shape)).astype("float32") for shape in shapes]
    grads = [rng.standard_normal((3, *shape)).astype("float32") for shape in shapes]

    def final(particles):
        theta = {k: np.stack([thetas[i][k] for i in particles]) for k in thetas[0]}
        start = [tf.constant(p[particles]) for p in params]
        gradients = [[tf.constant(g[particles]) for g in grads]] * 3
        return apply(rule, theta, start, gradients, jit_compile=False)[-1]

    together = final([0, 1, 2])
    for i in range(3):
        for alone, joint in zip(final([i]), together, strict=True):
            np.testing.assert_allclose(alone[0], joint[i], rtol=1e-5, atol=1e-6)


def random_theta(rule, seed=0):
    """As `[1, ...]`, and random also where a rule starts from zeros."""
    rng = np.random.default_rng(seed)
    return {
        name: tf.constant(0.5 * rng.standard_normal((1, *shape)), tf.float32)
        for name, shape in rule.theta_shapes().items()
    }


def one_update(rule, theta, grads, params, step=0, **known):
    """The updates of one step, from the state before the first."""
    state = rule.init_state(theta, params)
    signals = rules.Signals.silent(tf.constant([step]), **known)
    return rule.update(theta, state, grads, params, signals)[0]


def tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.standard_normal((1, *shape)), tf.float32) for shape in shapes]


@pytest.mark.parametrize("rule", [*LEARNED, *HANDCRAFTED], ids=lambda rule: type(rule).__name__)
def test_updates_and_their_derivatives_are_finite(rule):
    theta = random_theta(rule)
    params = tensors([(), (5,), (3, 3, 2, 4)])

    # Compiled, as XLA and eager execution differ in the derivative of a root at zero.
    @tf.function(jit_compile=True, autograph=False)
    def differentiate(scale):
        with tf.GradientTape() as tape:
            tape.watch((theta, params))
            updates = one_update(rule, theta, [scale * x for x in params], params)
            total = tf.add_n([tf.reduce_sum(update) for update in updates])
        zero = tf.UnconnectedGradients.ZERO
        return updates, tape.gradient(total, (theta, params), unconnected_gradients=zero)

    for scale in (0.0, 1.0, 1e6):
        for x in tf.nest.flatten(differentiate(tf.constant(scale))):
            assert np.isfinite(x.numpy()).all(), scale


HEARERS = [rule for rule in ALL_RULES if rule.signals]


@pytest.mark.parametrize("rule", HEARERS, ids=lambda rule: type(rule).__name__)
def test_what_a_rule_says_it_hears_changes_its_update(rule):
    theta, params, grads = random_theta(rule), tensors([(5,), (4, 6)]), tensors([(5,), (4, 6)], 1)
    state = rule.init_state(theta, params)
    # Losses are seen relative to those before: a first step makes them known.
    known = {"train_loss": tf.constant([1.0]), "validation_loss": tf.constant([1.0])}
    _, state = rule.update(
        theta, state, grads, params, rules.Signals.silent(tf.constant([0]), **known)
    )
    for name in rule.signals:
        signals = [
            rules.Signals.silent(tf.constant([1]), **({name: tf.constant([v])} if v else {}))
            for v in (None, 2.0, 5.0)
        ]
        updates = [rule.update(theta, state, grads, params, s)[0][1].numpy() for s in signals]
        assert (updates[0] != updates[1]).any(), name
        assert all(np.isfinite(update).all() for update in updates)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_only_a_rule_that_says_so_mixes_tensors(rule):
    theta, params = random_theta(rule), tensors([(5,), (4, 6)])
    state = rule.init_state(theta, params)
    updates = []
    for seed in (1, 2):
        new_state, grads = state, [*tensors([(5,)], 0), *tensors([(4, 6)], seed)]
        for i in range(2):
            signals = rules.Signals.silent(tf.constant([i]))
            update, new_state = rule.update(theta, new_state, grads, params, signals)
        updates.append(update[0].numpy())
    assert (updates[0] != updates[1]).any() == rule.mixes_tensors


def test_the_recurrent_rule_is_a_gru():
    rule = rules.Recurrent(hidden_size=4, step_mult=0.5)
    theta = random_theta(rule)
    cell = keras.layers.GRUCell(4, reset_after=False)
    cell.build((None, 1))
    cell.set_weights([theta[name][0].numpy() for name in ("kernel0", "recurrent_kernel0", "bias0")])
    params = tensors([(2, 3)])
    gradients = [tensors([(2, 3)], seed) for seed in range(3)]
    history = apply(rule, {k: v.numpy() for k, v in theta.items()}, params, gradients)
    hidden, expected = tf.zeros((6, 4)), params[0].numpy()
    for grads, (values,) in zip(gradients, history, strict=True):
        hidden, _ = cell(tf.reshape(grads[0], (6, 1)), hidden)
        readout = tf.matmul(hidden, theta["readout_w"][0])
        expected = expected + 0.5 * tf.reshape(readout, (1, 2, 3)).numpy()
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_logarithm_and_sign():
    g = np.array([[[1.0, -np.exp(-5), np.exp(-10.0) / 2, 0.0]]], "float32")
    expected = [[[0.0, -0.5, -1.0, -1.0], [1.0, -1.0, 0.5, 0.0]]]
    np.testing.assert_allclose(recurrent.log_and_sign(g), expected, rtol=1e-5, atol=1e-6)


def test_untrained_learned_hyperparameters_are_adam():
    rule = rules.LearnedHyperparameters(learning_rate=0.01, beta_1=0.8, epsilon=1e-5)
    adam = rules.Adam(learning_rate=0.01, beta_1=0.8, epsilon=1e-5)
    params = tensors([(), (5,), (4, 6)])
    gradients = [tensors([(), (5,), (4, 6)], seed) for seed in range(10)]
    thetas = [{k: v[None] for k, v in r.init_theta().items()} for r in (rule, adam)]
    ours, reference = (
        apply(r, theta, params, gradients) for r, theta in zip((rule, adam), thetas, strict=True)
    )
    for a, b in zip(ours, reference, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_learned_hyperparameters_stay_in_their_ranges(sign):
    rule = rules.LearnedHyperparameters(
        learning_rate=0.01, learning_rate_range=100.0, epsilon=1e-9, decay_range=2.0
    )
    theta = {name: value[None] for name, value in rule.init_theta().items()}
    theta["controller_b2"] = np.array([[1e9 * sign, 0.0, 0.0, 0.0]], "float32")
    (update,) = one_update(rule, theta, tensors([(5,)], 1), tensors([(5,)]))
    # The first step of Adam is the learning rate, by the sign of the gradient.
    np.testing.assert_allclose(np.abs(update), 0.01 * 100.0**sign, rtol=1e-4)


@pytest.mark.parametrize("output", [-1e9, 0.0, 0.5, 1e9])
def test_a_schedule_multiplies_the_steps_of_its_rule(output):
    inner = rules.MLP(hidden_size=4)
    rule = rules.Scheduled(inner, step_mult=3.0, exp_mult=2.0)
    theta = {name: tf.constant(value[None]) for name, value in rule.init_theta(1).items()}
    theta["schedule_b2"] = tf.constant([[output]], tf.float32)
    inner_theta = {name: tf.constant(value[None]) for name, value in inner.init_theta(1).items()}
    shapes = [(), (5,), (4, 6)]
    updates = one_update(rule, theta, tensors(shapes, 1), tensors(shapes))
    expected = one_update(inner, inner_theta, tensors(shapes, 1), tensors(shapes))
    factor = 3.0 * np.exp(2.0 * np.tanh(output))
    for a, b in zip(updates, expected, strict=True):
        np.testing.assert_allclose(a, factor * b, rtol=1e-5)


def test_a_schedule_anneals_over_the_planned_steps():
    shapes = [(5,), (4, 6)]
    steps = {
        anneal: [
            one_update(
                rules.Scheduled("adam", anneal=anneal),
                {k: v[None] for k, v in rules.Scheduled("adam").init_theta(1).items()},
                tensors(shapes, 1),
                tensors(shapes),
                step,
                total_steps=tf.constant([total], tf.float32),
            )
            for step, total in ((0, 8.0), (6, 8.0), (7, 8.0), (8, 8.0), (9, 8.0), (6, np.nan))
        ]
        for anneal in (True, False)
    }
    # Beyond them, as where they are not known.
    fractions = (1.0, 0.25, 0.125, 1.0, 1.0, 1.0)
    for fraction, annealed, plain in zip(fractions, *steps.values(), strict=True):
        for a, b in zip(annealed, plain, strict=True):
            np.testing.assert_allclose(a, fraction * b.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("total", "fraction"), [(np.nan, 0.4), (8.0, 1.0)])
def test_a_schedule_decays_where_the_planned_steps_are_not_known(total, fraction):
    plain, decaying = (
        one_update(
            rule,
            {k: v[None] for k, v in rule.init_theta(1).items()},
            tensors([(4, 6)], 1),
            tensors([(4, 6)]),
            6,
            total_steps=tf.constant([total], tf.float32),
        )
        for rule in (rules.Scheduled("adam"), rules.Scheduled("adam", decay_steps=4))
    )
    np.testing.assert_allclose(decaying[0], fraction * plain[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("scale", "largest", "expected"),
    [(3.0, None, 3.0), (0.01, None, 0.1), (0.0, None, 0.1), (3.0, 0.5, 0.5), (0.3, 0.5, 0.3)],
)
@pytest.mark.parametrize("shape", [(5,), (4, 6)])
def test_relative_steps_are_in_units_of_the_tensor(scale, largest, expected, shape):
    param = np.random.RandomState(1).standard_normal(shape).astype("float32")
    param = [tf.constant(scale * param / np.sqrt(np.mean(param**2)))[None]]
    theta = {k: v[None] for k, v in rules.Scheduled("adam").init_theta(1).items()}
    relative, plain = (
        one_update(rules.Scheduled("adam", **scales), theta, tensors([shape]), param)[0]
        for scales in ({"min_parameter_scale": 0.1, "max_parameter_scale": largest}, {})
    )
    np.testing.assert_allclose(relative, expected * plain.numpy(), rtol=1e-5)


@pytest.mark.parametrize("orthogonalize", [True, False])
def test_normalised_steps_have_one_size(orthogonalize):
    rule = rules.NormalizedMLP(step_mult=0.1, orthogonalize=orthogonalize, adam_fallback=False)
    shapes = [(), (7,), (4, 6), (6, 4), (3, 4, 6)]
    for scale in (1e-3, 1.0, 1e3):
        grads = [scale * g for g in tensors(shapes, 1)]
        for update in one_update(rule, random_theta(rule), grads, tensors(shapes)):
            update = update.numpy()[0]
            axes = tuple(range(update.ndim))[-2:]
            size = np.sqrt((update**2).mean(axis=axes))
            np.testing.assert_allclose(size, 0.1, rtol=1e-3)
            if orthogonalize and update.ndim >= 2:
                singular = np.linalg.svd(update, compute_uv=False)
                assert (singular.max(axis=-1) < 2.5 * singular.min(axis=-1)).all()


def test_adam_takes_vectors_and_embeddings():
    rule = rules.NormalizedMLP(step_mult=0.1)
    theta, params = random_theta(rule), tensors([(5,), (4, 6), (4, 6)])
    names = ["dense/bias", "dense/kernel", "embedding/embeddings"]
    state = rule.init_state(theta, params, names)
    assert [set(tensor) == {"m", "v"} for tensor in state.tensors] == [True, False, True]
    grads = tensors([(5,), (4, 6), (4, 6)], 1)
    updates, _ = rule.update(theta, state, grads, params, rules.Signals.silent(tf.constant([0])))
    for i in (0, 2):
        np.testing.assert_allclose(updates[i], -0.1 * np.sign(grads[i]), rtol=1e-4)


def keras_updates(rule, theta, start, gradients):
    """What each step of LearnedOptimizer adds to a variable."""
    variable = keras.Variable(start)
    optimizer = LearnedOptimizer(theta, rule, jit_compile=False)
    values = [start]
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
        values.append(variable.numpy())
    return np.diff(values, axis=0)


@pytest.mark.parametrize("orthogonalize", [True, False])
def test_flattened_filters_are_one_matrix(orthogonalize):
    rule = rules.NormalizedMLP(step_mult=0.1, orthogonalize=orthogonalize, flatten_filters=True)
    theta = {name: value[0].numpy() for name, value in random_theta(rule).items()}
    start, *gradients = np.random.RandomState(0).standard_normal((4, 3, 3, 2, 4)).astype("float32")
    filters = keras_updates(rule, theta, start, gradients)
    matrix = keras_updates(
        rule, theta, start.reshape(18, 4), [gradient.reshape(18, 4) for gradient in gradients]
    )
    np.testing.assert_allclose(filters.reshape(3, 18, 4), matrix, rtol=1e-5, atol=1e-6)
    apart = dataclasses.replace(rule, flatten_filters=False)
    assert np.abs(filters - keras_updates(apart, theta, start, gradients)).max() > 0.01


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 3, 2, 4)])
@pytest.mark.parametrize("start_as", ["momentum", "muon"])
def test_an_untrained_rule_that_starts_as_momentum_is_muon(shape, hidden_layers, start_as):
    rule = rules.NormalizedMLP(
        hidden_layers=hidden_layers,
        step_mult=0.1,
        momentum_decays=(0.5, 0.99),
        factored_decays=(0.9, 0.99),
        flatten_filters=True,
        start=start_as,
    )
    start, *gradients = np.random.RandomState(0).standard_normal((4, *shape)).astype("float32")
    updates = keras_updates(rule, rule.init_theta(1), start, gradients)
    momentum = 0.0
    for gradient, update in zip(gradients, updates, strict=True):
        momentum = 0.5 * momentum + 0.5 * gradient
        matrix = tf.constant(momentum.reshape(-1, shape[-1]))
        direction = keras.optimizers.Muon().zeropower_via_newtonschulz5(matrix, 5).numpy()
        direction /= np.sqrt(np.mean(direction**2))
        np.testing.assert_allclose(
            update.reshape(-1, shape[-1]), -0.1 * direction, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((7,), {"orthogonalize": False, "start": "adam"}),
        ((4, 6), {"orthogonalize": False, "start": "adam"}),
        ((7,), {"start": "muon"}),
    ],
)
def test_an_untrained_rule_that_starts_as_adam_has_its_direction(shape, how):
    rule = rules.NormalizedMLP(step_mult=0.1, adam_fallback=False, rms_decays=(0.99,), **how)
    start, *gradients = np.random.RandomState(0).standard_normal((4, *shape)).astype("float32")
    updates = keras_updates(rule, rule.init_theta(1), start, gradients)
    momentum = squares = 0.0
    for gradient, update in zip(gradients, updates, strict=True):
        momentum = 0.9 * momentum + 0.1 * gradient
        squares = 0.99 * squares + 0.01 * gradient**2
        direction = momentum / np.sqrt(squares + 1e-8)
        direction /= np.sqrt(np.mean(direction**2))
        np.testing.assert_allclose(update, -0.1 * direction, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(4000,), (2, 50, 80)], ids=str)
def test_noise_scaled_steps_shrink_where_gradients_are_noise(shape):
    rule = rules.NormalizedMLP(
        hidden_size=2,
        hidden_layers=1,
        step_mult=0.1,
        orthogonalize=False,
        adam_fallback=False,
        start="adam",
        noise_scaled=True,
    )
    rng = np.random.RandomState(0)
    noise = rng.standard_normal((100, *shape)).astype("float32")
    for gradients, size in ((np.ones_like(noise), 0.1), (noise, 0.1 * np.sqrt(0.1 / 1.9))):
        *_, last = keras_updates(rule, rule.init_theta(1), noise[0], gradients)
        axes = tuple(range(len(shape)))[-2:]
        np.testing.assert_allclose(np.sqrt((last**2).mean(axis=axes)), size, rtol=0.1)


def test_a_start_as_momentum_is_random_elsewhere():
    rule = rules.NormalizedMLP(start="momentum")
    theta, other = rule.init_theta(1), dataclasses.replace(rule, start="random")
    plain = other.init_theta(1)
    for name in ("w0", "w1"):
        np.testing.assert_array_equal(theta[name][:, 2:], plain[name][:, 2:])
        assert theta[name][:, 2:].all()
    np.testing.assert_array_equal(theta["w2"][:, 1:], plain["w2"][:, 1:])


@pytest.mark.parametrize("rule", ALL_RULES, ids=repr)
def test_serialization_through_json(rule):
    assert rules.get(json.loads(json.dumps(rules.serialize(rule)))) == rule


def test_numpy_numbers_serialize_too():
    rule = rules.MLP(hidden_size=np.int64(4), step_mult=np.float32(0.5), momentum_decays=(0.9,))
    assert rules.get(json.loads(json.dumps(rules.serialize(rule)))) == rule


def test_get_by_name():
    assert rules.get("FactoredMLP") == rules.get("factored_mlp") == rules.FactoredMLP()
    assert rules.get("mlp", hidden_size=4) == rules.MLP(hidden_size=4)
    rule = rules.SGD()
    assert rules.get(rule) is rule


def test_arguments_work_under_their_old_names():
    """As in the metadata of exports from before they were renamed."""
    rule = rules.get("normalized_mlp", cautious=True)
    assert rule == rules.NormalizedMLP(noise_scaled=True)
    config = {"smallest_scale": 0.1, "largest_scale": 0.3, "hears_validation_loss": False}
    rule = rules.Scheduled(
        min_parameter_scale=0.1, max_parameter_scale=0.3, uses_validation_loss=False
    )
    assert rules.get({"class_name": "Scheduled", "config": config}) == rule
    assert not set(config) & set(rule.get_config())


def test_a_registered_rule_of_the_users_own():
    @keras.saving.register_keras_serializable("test_rules")
    class HalfSGD(rules.SGD):
        def update_tensor(self, *args):
            update, state = super().update_tensor(*args)
            return 0.5 * update, state

    rule = HalfSGD(learning_rate=0.5)
    copy = rules.get(json.loads(json.dumps(rules.serialize(rule))))
    assert type(copy) is HalfSGD
    assert copy == rule


def test_init_theta_is_reproducible_and_scaled():
    rule = rules.FactoredMLP(hidden_size=32)
    theta = rule.init_theta(3)
    again, other = rule.init_theta(3), rule.init_theta(4)
    assert all((theta[name] == again[name]).all() for name in theta)
    assert (theta["w0"] != other["w0"]).any()
    np.testing.assert_allclose(theta["w1"].std(), 32**-0.5, rtol=0.1)
    assert not theta["momentum_decays"].any()
    assert not theta["b0"].any()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: rules.MLP(hidden_size=0), ValueError, "`hidden_size`.*hidden_size=0"),
        (lambda: rules.MLP(hidden_size=2.5), TypeError, "`hidden_size`.*2.5"),
        (lambda: rules.MLP(hidden_layers=10**9), ValueError, "`hidden_layers`"),
        (lambda: rules.MLP(step_mult=float("nan")), ValueError, "`step_mult`.*nan"),
        (lambda: rules.MLP(exp_mult="x"), TypeError, "`exp_mult`.*'x'"),
        (lambda: rules.MLP(momentum_decays=(0.9, 1.0)), ValueError, "`momentum_decays`.*1.0"),
        (lambda: rules.MLP(momentum_decays=()), ValueError, "`momentum_decays`"),
        (lambda: rules.FactoredMLP(rms_decays=(0.9, 0.99)), ValueError, "`rms_decays`"),
        (lambda: rules.FactoredMLP(factored_decays=(0.9,)), ValueError, "`factored_decays`"),
        (lambda: rules.SGD(momentum=1.0), ValueError, "`momentum`.*1.0"),
        (lambda: rules.SGD(nesterov=1), TypeError, "`nesterov`"),
        (lambda: rules.Adam(learning_rate=-1.0), ValueError, "`learning_rate`.*-1.0"),
        (lambda: rules.AdamW(weight_decay=0.0), ValueError, "`weight_decay`"),
        (lambda: rules.NormalizedMLP(orthogonalize=1), TypeError, "`orthogonalize`.*1"),
        (lambda: rules.NormalizedMLP(flatten_filters=1), TypeError, "`flatten_filters`.*1"),
        (
            lambda: rules.NormalizedMLP(hidden_size=1, start="momentum"),
            ValueError,
            "`hidden_size`.*start='momentum'.*hidden_size=1",
        ),
        (lambda: rules.NormalizedMLP(start="sgd"), ValueError, "`start`.*'sgd'"),
        (lambda: rules.NormalizedMLP(start="muon", hidden_size=2), ValueError, "at least 4"),
        (
            lambda: rules.Scheduled(min_parameter_scale=0.0),
            ValueError,
            "`min_parameter_scale`.*0.0",
        ),
        (
            lambda: rules.Scheduled(max_parameter_scale=1.0),
            ValueError,
            "needs a `min_parameter_scale`",
        ),
        (
            lambda: rules.Scheduled(min_parameter_scale=0.3, max_parameter_scale=0.1),
            ValueError,
            "`max_parameter_scale`.*0.1",
        ),
        (lambda: rules.Hierarchical(lstm_size=0), ValueError, "`lstm_size`.*0"),
        (lambda: rules.Recurrent(log_sign="x"), TypeError, "`log_sign`.*'x'"),
        (lambda: rules.LearnedHyperparameters(decay_range=0.5), ValueError, "`decay_range`.*0.5"),
        (lambda: rules.Scheduled("nope"), ValueError, "'nope'"),
        (lambda: rules.Scheduled(hidden_layers=0), ValueError, "`hidden_layers`.*0"),
        (lambda: rules.get("nope"), ValueError, "'nope'"),
        (lambda: rules.get("mlp", size=3), ValueError, "size"),
        (lambda: rules.get(3), TypeError, "3"),
        (lambda: rules.get({"class_name": "MLP"}), ValueError, "'config'"),
    ],
)
def test_wrong_arguments_are_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_check_theta_names_what_is_wrong():
    rule = rules.MLP(hidden_size=4, hidden_layers=1)
    good = rule.init_theta(0)
    nan = {**good, "b0": np.full(4, np.nan)}
    for theta, error, text in [
        ([1], TypeError, "dict"),
        ({**good, "extra": 1.0}, ValueError, "extra"),
        ({k: v for k, v in good.items() if k != "b1"}, ValueError, "missing.*b1"),
        ({**good, "b0": np.zeros(5)}, ValueError, r"'b0'.*\(4,\).*\(5,\)"),
        ({**good, "b0": np.array(["a"] * 4)}, TypeError, "'b0'.*numbers"),
        (nan, ValueError, "'b0'.*finite"),
        ({**good, "b0": np.full(4, 1e300)}, ValueError, "'b0'.*finite"),
    ]:
        with pytest.raises(error, match=text):
            rule.check_theta(theta)


def test_from_reference_checks_what_it_is_given():
    _, published, _ = load_vectors("factored_mlp_h4")
    with pytest.raises(ValueError, match=r"'w0'.*\(39, 8\).*\(39, 4\)"):
        rules.FactoredMLP(hidden_size=8).from_reference(published)
    with pytest.raises(ValueError, match="missing"):
        rules.MLP().from_reference(published)
    with pytest.raises(ValueError, match="no published implementation"):
        rules.SGD().from_reference(published)
