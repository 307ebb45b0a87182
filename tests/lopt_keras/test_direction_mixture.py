"""The mixture of directions against an independent, plain version in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from lopt_keras import LearnedOptimizer, controller, rules

SHAPES = ((70, 12), (12,), (12, 5), (5,), ())
STEPS = 6


def rule(**kwargs):
    return rules.DirectionMixture(hidden_size=4, hidden_layers=1, **kwargs)


def orthogonalized(x):
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def tiles(x, high, wide):
    """Index expressions of the tiles of a matrix."""
    for i in range(0, x.shape[0], high):
        for j in range(0, x.shape[1], wide):
            yield slice(i, i + high), slice(j, j + wide)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def plain_step(m, v, p, t, step_size, decay_steps, g):
    """One step of the untrained rule for one tensor, in float64: `(update, m, v)`."""
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    d = m / np.sqrt(v / (1.0 - 0.99 ** (t + 1)) + 1e-20)
    d = d / max(rms(d), 1.0)
    if p.ndim == 2:
        u = 0.9 * m + 0.1 * g
        d, u = (d, u) if p.shape[0] <= p.shape[1] else (d.T, u.T)
        mixed = np.zeros_like(d)
        for rows, columns in tiles(d, 32, 128):
            o = orthogonalized(u[rows, columns])
            mixed[rows, columns] = o * np.linalg.norm(d[rows, columns]) / np.linalg.norm(o)
        d = mixed if p.shape[0] <= p.shape[1] else mixed.T
    size = np.clip(rms(p), 0.01, 0.3)
    return -step_size / np.sqrt(1.0 + t / decay_steps) * size * d, m, v


def problem():
    rng = np.random.default_rng(0)
    params = [0.1 * rng.standard_normal(shape) for shape in SHAPES]
    grads = [[rng.standard_normal(shape) for shape in SHAPES] for _ in range(STEPS)]
    return params, grads


def plain_training(step_size=0.1, decay_steps=50.0):
    """Parameters and averages after the steps."""
    params, grads = problem()
    moments = [(np.zeros(shape), np.zeros(shape)) for shape in SHAPES]
    averages = None
    for t, step in enumerate(grads):
        for i, g in enumerate(step):
            update, *moments[i] = plain_step(*moments[i], params[i], t, step_size, decay_steps, g)
            params[i] = params[i] + update
        weight = 9.0 / (t + 9.0)
        old = params if averages is None else averages
        averages = [a + weight * (p - a) for a, p in zip(old, params, strict=True)]
    return params, averages


def trained(optimizer):
    """Variables after the same steps by an optimizer."""
    params, grads = problem()
    variables = [keras.Variable(p.astype("float32")) for p in params]
    for step in grads:
        optimizer.apply([ops.convert_to_tensor(g.astype("float32")) for g in step], variables)
    return variables


@pytest.mark.parametrize("jit_compile", [True, False])
def test_untrained_is_the_plain_optimizer(jit_compile):
    optimizer = LearnedOptimizer(weights=None, rule=rule(), jit_compile=jit_compile)
    variables = trained(optimizer)
    params, averages = plain_training()
    for variable, param in zip(variables, params, strict=True):
        np.testing.assert_allclose(variable, param, atol=2e-5)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, averages, strict=True):
        np.testing.assert_allclose(variable, average, atol=2e-5)


def test_a_call_that_only_accumulates_moves_nothing():
    params, grads = problem()
    grads = [[ops.convert_to_tensor(g.astype("float32")) for g in step] for step in grads[:2]]
    variables = [keras.Variable(p.astype("float32")) for p in params]
    optimizer = LearnedOptimizer(weights=None, rule=rule(), gradient_accumulation_steps=2)
    optimizer.apply(grads[0], variables)
    for variable, param in zip(variables, params, strict=True):
        np.testing.assert_array_equal(variable, param.astype("float32"))
    optimizer.apply(grads[1], variables)
    expected = [keras.Variable(p.astype("float32")) for p in params]
    means = [(a + b) / 2.0 for a, b in zip(*grads, strict=True)]
    LearnedOptimizer(weights=None, rule=rule()).apply(means, expected)
    for variable, other in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, other, rtol=1e-5, atol=1e-7)


def test_without_averages_the_last_parameters_stay():
    optimizer = LearnedOptimizer(weights=None, rule=rule(), use_ema=False)
    variables = trained(optimizer)
    last = [np.array(v) for v in variables]
    optimizer.finalize_variable_values(variables)
    for variable, value in zip(variables, last, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_averages_before_the_first_step_are_the_parameters():
    variables = [keras.Variable([1.0, 2.0])]
    optimizer = LearnedOptimizer(weights=None, rule=rule())
    optimizer.build(variables)
    optimizer.finalize_variable_values(variables)
    np.testing.assert_array_equal(variables[0], [1.0, 2.0])


def test_without_a_matrix_steps_are_larger():
    start, grad = 2.0 * np.ones(3), np.array([1.0, -2.0, 0.5])
    theta = rule().init_theta(0)
    (update,), _ = step_of(rule(), theta, [grad], [start])
    # Adam's first direction is 0.1 of the sign: the bias of the first moment stays.
    np.testing.assert_allclose(update, -0.4 * 2.0 * 0.1 * np.sign(grad), rtol=1e-5)
    matrix = np.ones((2, 3))
    (update, _), _ = step_of(rule(), theta, [grad, matrix], [start, matrix])
    np.testing.assert_allclose(update, -0.1 * 0.3 * 0.1 * np.sign(grad), rtol=1e-5)


def test_without_a_matrix_what_was_learned_is_left_out():
    rng = np.random.default_rng(1)
    theta = {
        name: rng.standard_normal(shape).astype("float32")
        for name, shape in rule().theta_shapes().items()
    }
    start, grad, matrix = np.ones(3), np.array([1.0, -2.0, 0.5]), np.ones((2, 3))
    (alone,), _ = step_of(rule(), theta, [grad], [start])
    (untrained,), _ = step_of(rule(), rule().init_theta(0), [grad], [start])
    np.testing.assert_array_equal(alone, untrained)
    (trusted,), _ = step_of(rule(vector_trust=1.0), theta, [grad], [start])
    assert np.abs(trusted - untrained).max() > 1e-3
    beside, _ = step_of(rule(), theta, [grad, matrix], [start, matrix])
    plain, _ = step_of(rule(), rule().init_theta(0), [grad, matrix], [start, matrix])
    assert np.abs(beside[0] - plain[0]).max() > 1e-3


def step_of(rule, theta, grads, params, step=0, names=None):
    """One update of P = 1 from a fresh state: `(updates, state)`."""
    theta = {name: ops.convert_to_tensor(x[None]) for name, x in theta.items()}
    grads, params = (
        [ops.convert_to_tensor(np.asarray(x, "float32")[None]) for x in xs]
        for xs in (grads, params)
    )
    state = rule.init_state(theta, params, names)
    signals = rules.Signals.silent(ops.convert_to_tensor([step]))
    updates, state = rule.update(theta, state, grads, params, signals, names=names)
    return [np.asarray(u)[0] for u in updates], state


def second_step(rule, theta, params, grads):
    """The second update: only then momentum and gradient differ, and the average counts."""
    theta = {name: ops.convert_to_tensor(x[None]) for name, x in theta.items()}
    params, *grads = (
        [ops.convert_to_tensor(np.asarray(x, "float32")[None]) for x in xs]
        for xs in (params, *grads[:2])
    )
    state = rule.init_state(theta, params)
    for step, grad in enumerate(grads):
        signals = rules.Signals.silent(ops.convert_to_tensor([step]))
        updates, state = rule.update(theta, state, grad, params, signals)
    return [np.asarray(u)[0] for u in updates], state


def test_embeddings_have_adams_direction():
    params, grads = problem()
    own = rule()
    for names, is_adams in ((["table"], False), (["my_embedding/table"], True)):
        (update,), _ = step_of(own, own.init_theta(), grads[0][:1], params[:1], names=names)
        # Adam's first direction has but one size.
        assert (np.ptp(np.abs(update)) < 1e-6) == is_adams


@pytest.mark.parametrize(
    ("output", "changed"),
    [(0, "updates"), (1, "updates"), (2, "updates"), (3, "updates"), (4, "average_weight")],
)
def test_each_output_of_the_network_matters(output, changed):
    params, grads = problem()
    own = rule()
    theta = own.init_theta()
    theta["b1"][output] = 0.5
    before, old = second_step(own, own.init_theta(), params, grads)
    after, new = second_step(own, theta, params, grads)
    moved = any(np.abs(a - b).max() > 1e-6 for a, b in zip(before, after, strict=True))
    assert moved == (changed == "updates")
    weights = [float(own.average_weight(state)[0]) for state in (old, new)]
    assert (weights[0] != weights[1]) == (changed == "average_weight")


def random_theta():
    rng = np.random.default_rng(1)
    return {
        name: 0.3 * rng.standard_normal(np.shape(value)).astype("float32")
        for name, value in rule().init_theta().items()
    }


@pytest.mark.parametrize("change", ["freeze", "unfreeze"])
def test_each_variable_gets_its_own_average_after_a_layer_is_frozen_or_not(change):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(3))])
    first = model.layers[0]
    first.trainable = change == "freeze"
    optimizer = LearnedOptimizer(jit_compile=False)
    model.compile(optimizer, loss="mse")
    model.fit(x, x[:, ::-1], verbose=0)
    first.trainable = change == "unfreeze"
    if change == "freeze":
        model.compile(optimizer, loss="mse")
    model.fit(x, x[:, ::-1], verbose=0)
    averages = dict(
        zip((id(v) for v in optimizer._all_variables), optimizer._averages, strict=True)
    )
    trained = [v for v in model.trainable_variables if id(v) in averages]
    assert len(trained) == 4
    for variable in trained:
        np.testing.assert_array_equal(variable, averages[id(variable)])
    # In any order, and only those that are given.
    last, kernel = trained[-1], first.kernel.numpy()
    last.assign(last + 1.0)
    optimizer.finalize_variable_values([last])
    np.testing.assert_array_equal(last, averages[id(last)])
    np.testing.assert_array_equal(first.kernel, kernel)
    with pytest.raises(ValueError, match=r"`var_list` must hold .*Received: var_list=\['other'\]"):
        optimizer.finalize_variable_values([keras.Variable([1.0], name="other")])


def test_trust_falls_with_the_size_of_a_model_that_is_larger_than_those_known():
    (params, grads), theta = problem(), random_theta()
    size = sum(np.size(param) for param in params)
    known, larger, half = (
        second_step(rule(**kwargs), theta, params, grads)[0]
        for kwargs in (
            {"trusted_size": size},
            {"trusted_size": size / 16},
            {"trust": 0.5},
        )
    )
    whole = second_step(rule(), theta, params, grads)[0]
    for a, b, c, d in zip(known, whole, larger, half, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, d)
        assert np.abs(c - a).max() > 1e-3 * np.abs(a).max()


def test_trust_is_between_the_untrained_rule_and_the_learned_one():
    (params, grads), theta = problem(), random_theta()
    untrained = second_step(rule(), rule().init_theta(), params, grads)[0]
    none, half, whole = (
        second_step(rule(trust=trust), theta, params, grads)[0] for trust in (0.0, 0.5, 1.0)
    )
    for expected, a, b, c in zip(untrained, none, half, whole, strict=True):
        np.testing.assert_allclose(a, expected, rtol=1e-5, atol=1e-8)
        assert np.abs(b - a).max() > 1e-3 * np.abs(a).max()
        assert np.abs(c - b).max() > 1e-3 * np.abs(a).max()


def test_steps_fall_where_the_horizon_is_known_and_annealed():
    own = rule(anneal=1.0)
    params, grads = problem()
    theta = {name: ops.convert_to_tensor(x[None]) for name, x in own.init_theta().items()}
    params, grads = (
        [ops.convert_to_tensor(np.asarray(x, "float32")[None]) for x in xs]
        for xs in (params, grads[0])
    )
    state = own.init_state(theta, params)
    sizes = []
    for total in (np.nan, 100.0):
        signals = rules.Signals.silent(
            ops.convert_to_tensor([50]), total_steps=ops.convert_to_tensor([total], "float32")
        )
        updates, _ = own.update(theta, state, grads, params, signals)
        sizes.append(np.abs(updates[0]).max())
    np.testing.assert_allclose(sizes[1], 0.5 * sizes[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"step_size": 0.0}, ValueError),
        ({"max_parameter_scale": 0.001}, ValueError),
        ({"anneal": 1.5}, ValueError),
        ({"vector_trust": -1.0}, ValueError),
        ({"trusted_size": -1}, ValueError),
        ({"vector_max_scale": 0.001}, ValueError),
        ({"tile_rows": 24}, ValueError),
        ({"average_window": "9"}, TypeError),
        ({"hidden_size": 0}, ValueError),
    ],
)
def test_refuses_what_is_out_of_range(kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        rules.DirectionMixture(**kwargs)


def test_what_has_no_scale_decays_slowly():
    """Where the gradient is at a right angle to a tensor, it hardly shrinks."""
    theta = rule().init_theta()
    theta["b1"][3] = 10.0  # The most decay: a tenth of the relative step.
    free, other = (keras.Variable(problem()[0][0].astype("float32")) for _ in range(2))
    start = rms(ops.convert_to_numpy(free))
    optimizer = LearnedOptimizer(weights=theta, rule=rule(), use_ema=False)
    rng = np.random.default_rng(1)
    for _ in range(60):
        noise = rng.standard_normal(free.shape).astype("float32")
        p = ops.convert_to_numpy(free).astype("float64")
        right_angle = noise - p * np.sum(p * noise) / np.sum(p * p)
        grads = [ops.convert_to_tensor(g.astype("float32")) for g in (right_angle, noise)]
        optimizer.apply(grads, [free, other])
    assert 0.95 < rms(ops.convert_to_numpy(free)) / start < 1.04
    assert rms(ops.convert_to_numpy(other)) / start < 0.85


def controls_after(losses, first_step=100, **kwargs):
    """What the network chooses after these training losses, `[P, steps]`: dict of arrays.

    A loss that is not a number has not been heard.
    """
    params, grads = problem()
    own = rule(**kwargs)
    theta = own.init_theta()
    theta["b1"][:] = 0.5
    repeated = {name: np.stack([x] * len(losses)) for name, x in theta.items()}
    theta = {name: ops.convert_to_tensor(x) for name, x in repeated.items()}
    params, grad = (
        [ops.convert_to_tensor(np.stack([x] * len(losses)).astype("float32")) for x in xs]
        for xs in (params, grads[0])
    )
    state = own.init_state(theta, params)
    for step, loss in enumerate(np.transpose(losses).astype("float32"), first_step):
        heard = rules.Signal.where(~np.isnan(loss), ops.convert_to_tensor(np.nan_to_num(loss)))
        steps = ops.convert_to_tensor([step] * len(loss))
        signals = rules.Signals.silent(steps, train_loss=heard)
        # The parameters stay: only what is heard changes.
        _, state = own.update(theta, state, grad, params, signals)
    chosen = own.controls(theta, state, grad, params, signals)
    return {name: np.asarray(x) for name, x in chosen.items()}


PLATEAU = np.ones(51)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(51)
FALL = np.linspace(0.0, -0.5, 51)
# Whether the training has begun: losses.
LOSSES = {
    "a constant": (False, PLATEAU),
    "noise": (False, PLATEAU + NOISE),
    "noise, negative": (False, -1e3 * (PLATEAU + NOISE)),
    "a rise": (False, 1e-3 * np.geomspace(1.0, 3.0, 51)),
    "a fall": (True, PLATEAU + NOISE + FALL),
    "a fall below zero": (True, 1e4 * (NOISE + FALL)),
    "not heard": (True, np.nan * PLATEAU),
}


def test_the_network_waits_until_the_loss_has_begun_to_fall():
    begun, losses = zip(*LOSSES.values(), strict=True)
    chosen = controls_after(losses, least_fall=1.0)
    begun = np.asarray(begun)[:, None]
    full = {name: x[-1] for name, x in chosen.items()}
    assert (np.abs(np.log(full["factor"])) > 1e-2).all()
    assert (full["decay"] > 1e-3).all()
    for name, neutral in (("factor", 1.0), ("decay", 0.0), ("mix", 0.0)):
        share = (chosen[name] - neutral) / (full[name] - neutral)
        np.testing.assert_array_equal(share > 0.75, begun & np.ones_like(share, bool), str(share))
        np.testing.assert_array_equal(share < 0.5, ~begun & np.ones_like(share, bool), str(share))


def test_the_network_counts_in_the_first_steps_and_where_no_fall_is_asked_for():
    first = controls_after([PLATEAU[:9]], first_step=40, least_fall=1.0)
    later = controls_after([PLATEAU[:9]])
    assert (first["decay"] > 1e-3).all()
    assert (later["decay"] > 1e-3).all()


def test_a_constant_loss_is_a_plateau_whatever_its_rounding():
    losses = np.asarray([1.0, -3.7, 1e-4, 2.3e5], "float32")
    statistics, progress = (
        controller.init_losses(len(losses)),
        controller.init_progress(len(losses)),
    )
    heard = rules.Signal.where(True, ops.convert_to_tensor(losses))
    shares = []
    for step in range(300):
        steps = ops.convert_to_tensor([step] * len(losses))
        signals = rules.Signals.silent(steps, train_loss=heard)
        statistics, _ = controller.listen(statistics, signals)
        progress, share = controller.begun(progress, statistics, signals, least_fall=1.0)
        shares.append(np.asarray(share))
    assert np.max(shares[100:]) < 0.1
