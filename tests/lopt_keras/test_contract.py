"""What every Keras optimizer does, for every learned rule."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import lopt_keras
from lopt_keras import LearnedOptimizer, rules
from lopt_keras.rules import hand_designed

# As small as they get: what is tested is how they are run, not what they compute.
RULES = {
    "mlp": rules.MLP(hidden_size=2, hidden_layers=1, step_mult=0.01, momentum_decays=(0.9,)),
    "factored_mlp": rules.FactoredMLP(hidden_size=2, hidden_layers=1, step_mult=0.01),
    "normalized_mlp": rules.NormalizedMLP(hidden_size=2, hidden_layers=1, step_mult=0.01),
    "hierarchical": rules.Hierarchical(
        hidden_size=2, hidden_layers=1, lstm_size=2, step_mult=0.01, decays=(0.9,)
    ),
    "recurrent": rules.Recurrent(hidden_size=2, step_mult=0.01),
    "learned_hyperparameters": rules.LearnedHyperparameters(
        hidden_size=2, hidden_layers=1, learning_rate=0.01
    ),
    "scheduled": rules.Scheduled(
        rules.MLP(hidden_size=2, hidden_layers=1, step_mult=0.01),
        hidden_size=2,
        hidden_layers=1,
        exp_mult=1.0,
    ),
    "direction_mixture": rules.DirectionMixture(hidden_size=2, hidden_layers=1),
}
X = np.random.RandomState(0).standard_normal((64, 6)).astype("float32")
Y = X[:, :1] * 2 - X[:, 1:2]
START = ([[1.0, 2.0], [3.0, 4.0]], [0.5, -0.5])

pytestmark = pytest.mark.filterwarnings("ignore:The update rule .* makes use of")


# One for each form of state: of tensors and shared by them, and of all tensors in one. What the
# optimizer does around a rule can depend on that form, and on nothing else of the rule.
FORMS_OF_STATE = ("scheduled", "direction_mixture")


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


@pytest.fixture(params=FORMS_OF_STATE)
def form_of_state(request):
    """A rule, where a test is of what stands around it."""
    return RULES[request.param]


def theta_of(rule):
    """Random, also where a rule starts from zeros: what is zero would test nothing."""
    rng = np.random.RandomState(0)
    return {
        name: 0.5 * rng.standard_normal(shape).astype("float32")
        for name, shape in rule.theta_shapes().items()
    }


def make_optimizer(rule, **kwargs):
    # Compiled programs are tested elsewhere; here they would cost seconds each.
    return LearnedOptimizer(weights=theta_of(rule), rule=rule, **{"jit_compile": False, **kwargs})


def make_model(optimizer, seed=0, **compile_args):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer, loss="mse", jit_compile=False, **compile_args)
    return model


def fit(model, x=X, epochs=1, **kwargs):
    model.fit(x, Y[: len(x)], batch_size=16, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return model


def make_variables():
    return [keras.Variable(value) for value in START]


def gradients(num, seed=0):
    """A list of gradients for each of `num` steps."""
    rng = np.random.RandomState(seed)
    return [[rng.standard_normal(np.shape(s)).astype("float32") for s in START] for _ in range(num)]


def trajectory(optimizer, steps):
    """The values of two variables after each step."""
    variables, history = make_variables(), []
    for grads in steps:
        optimizer.apply([tf.constant(g) for g in grads], variables)
        history.append([v.numpy() for v in variables])
    return history


def values(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_equal(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def moved(history):
    return np.abs(history[-1][0] - START[0]).max()


def test_every_learned_rule_is_here():
    learned = {
        n for n in rules.NAMES if not issubclass(getattr(rules, n), hand_designed.HandDesigned)
    }
    assert {type(rule).__name__ for rule in RULES.values()} == learned


# Running.


def test_xla_and_autograph_free_graphs_give_the_same(rule):
    steps = gradients(3)
    plain = trajectory(make_optimizer(rule), steps)
    compiled = trajectory(make_optimizer(rule, jit_compile=True), steps)
    assert moved(plain) > 0
    for a, b in zip(plain, compiled, strict=True):
        assert_equal(a, b, rtol=1e-5, atol=1e-6)


def test_under_checks_of_numerics(rule):
    tf.debugging.enable_check_numerics()
    try:
        history = trajectory(make_optimizer(rule, jit_compile=True), gradients(2))
    finally:
        tf.debugging.disable_check_numerics()
    expected = trajectory(make_optimizer(rule), gradients(2))
    for a, b in zip(history, expected, strict=True):
        assert_equal(a, b, rtol=1e-5, atol=1e-6)


def test_iterations_count_steps(rule):
    optimizer = make_optimizer(rule)
    assert int(optimizer.iterations) == 0
    trajectory(optimizer, gradients(2))
    assert int(optimizer.iterations) == 2


def test_empty_gradients(form_of_state):
    used, unused = make_variables()
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        make_optimizer(form_of_state).apply_gradients([(None, used)])
    optimizer = make_optimizer(form_of_state)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply_gradients([(tf.ones((2, 2)), used), (None, unused)])
    np.testing.assert_array_equal(unused.numpy(), START[1])
    assert (used.numpy() != START[0]).any()


def test_an_unusable_gradient_changes_only_the_counter(rule):
    optimizer = make_optimizer(rule)
    variables = make_variables()
    first, bad = gradients(2)
    optimizer.apply([tf.constant(g) for g in first], variables)
    before = [v.numpy() for v in [*variables, *optimizer.variables]]
    bad[1][0] = np.nan
    optimizer.apply([tf.constant(g) for g in bad], variables)
    after = [v.numpy() for v in [*variables, *optimizer.variables]]
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if (a != b).any()]
    assert [optimizer.variables[i - 2].name for i in changed] == ["skipped_steps"]


def test_tensorflow_variables_mix_with_those_of_keras(form_of_state):
    mine, native = keras.Variable(START[0]), tf.Variable(START[0])
    make_optimizer(form_of_state).apply([tf.ones((2, 2))] * 2, [mine, native])
    np.testing.assert_allclose(mine.numpy(), native.numpy(), rtol=1e-6)
    assert (mine.numpy() != START[0]).any()


def test_constraints_are_applied(form_of_state):
    variable = keras.Variable([-0.5, 0.5])
    variable.constraint = keras.constraints.NonNeg()
    make_optimizer(form_of_state).apply([tf.constant([0.1, -0.1])], [variable])
    assert variable.numpy()[0] == 0.0


def test_overwrite_with_gradient(form_of_state):
    variables = make_variables()
    variables[0].overwrite_with_gradient = True
    optimizer = make_optimizer(form_of_state)
    optimizer.apply([tf.ones((2, 2)), tf.ones(2)], variables)
    np.testing.assert_array_equal(variables[0].numpy(), np.ones((2, 2)))
    assert (variables[1].numpy() != START[1]).any()


# Hyperparameters of every optimizer.


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"clipvalue": 0.1}, lambda grads: [np.clip(g, -0.1, 0.1) for g in grads]),
        ({"clipnorm": 0.1}, lambda grads: [0.1 * g / np.linalg.norm(g) for g in grads]),
        (
            {"global_clipnorm": 0.1},
            lambda grads: [0.1 * g / np.sqrt(sum((x**2).sum() for x in grads)) for g in grads],
        ),
    ],
    ids=["clipvalue", "clipnorm", "global_clipnorm"],
)
def test_clipping(form_of_state, options, clip):
    steps = gradients(3)
    clipped = trajectory(make_optimizer(form_of_state, **options), steps)
    expected = trajectory(make_optimizer(form_of_state), [clip(grads) for grads in steps])
    for a, b in zip(clipped, expected, strict=True):
        assert_equal(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="Only one of"):
        make_optimizer(form_of_state, **{"clipvalue": 0.2, "clipnorm": 0.1, **options})


def test_gradient_accumulation_equals_the_mean_gradient(form_of_state):
    micro = gradients(6)
    means = [
        [np.mean(parts, axis=0) for parts in zip(*micro[i : i + 3], strict=True)] for i in (0, 3)
    ]
    accumulating = make_optimizer(form_of_state, gradient_accumulation_steps=3)
    history = trajectory(accumulating, micro)
    expected = trajectory(make_optimizer(form_of_state), means)
    assert_equal(history[1], START)
    assert_equal(history[2], expected[0], rtol=1e-5, atol=1e-6)
    assert_equal(history[5], expected[1], rtol=1e-5, atol=1e-6)
    assert int(accumulating.iterations) == 2


def test_weight_decay_and_its_exclusions(form_of_state):
    optimizer = make_optimizer(form_of_state, weight_decay=0.5, learning_rate=0.1)
    variables = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "bias")]
    plain = [keras.Variable(value) for value in ([0.95, 1.9], [1.0, 2.0])]
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    gradient = tf.constant([1.0, -1.0])
    optimizer.apply([gradient] * 2, variables)
    make_optimizer(form_of_state, learning_rate=0.1).apply([gradient] * 2, plain)
    assert_equal([v.numpy() for v in variables], [v.numpy() for v in plain], rtol=1e-6)


# A rule that averages has weights of its own, which are tested with it.
@pytest.mark.parametrize(
    "rule", [RULES[name] for name in FORMS_OF_STATE if not RULES[name].averages]
)
def test_moving_average_and_overwriting(rule):
    steps = gradients(4)
    expected = trajectory(make_optimizer(rule), steps)
    optimizer = make_optimizer(rule, use_ema=True, ema_momentum=0.9)
    history = trajectory(optimizer, steps)
    assert_equal(history[-1], expected[-1])
    average = history[0][0]
    for step in history[1:]:
        average = 0.9 * average + 0.1 * step[0]
    np.testing.assert_allclose(
        optimizer._model_variables_moving_average[0].numpy(), average, rtol=1e-5
    )
    overwriting = make_optimizer(rule, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2)
    history = trajectory(overwriting, steps[:2])
    np.testing.assert_allclose(
        history[1][0], 0.9 * expected[0][0] + 0.1 * expected[1][0], rtol=1e-5
    )


def test_learning_rate_scales_and_can_be_assigned(rule):
    (grads,) = gradients(1)
    full = trajectory(make_optimizer(rule), [grads])
    half = trajectory(make_optimizer(rule, learning_rate=lambda: 0.5), [grads])
    for x, y, start in zip(half[0], full[0], START, strict=True):
        np.testing.assert_allclose(x - start, 0.5 * (y - start), rtol=1e-3, atol=1e-6)
    optimizer = make_optimizer(rule)
    optimizer.learning_rate = 0.0
    assert_equal(trajectory(optimizer, [grads])[0], START)
    count = len(optimizer.variables)
    optimizer.learning_rate = keras.optimizers.schedules.PolynomialDecay(1.0, 4)
    assert len(optimizer.variables) == count - 1


def test_learning_rate_callbacks(form_of_state):
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(self.model.optimizer.learning_rate))

    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 ** (epoch + 1))
    fit(make_model(make_optimizer(form_of_state)), epochs=2, callbacks=[scheduler, Record()])
    assert seen == [0.5, 0.25]
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    model = fit(make_model(make_optimizer(form_of_state)), epochs=3, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) == 0.25


def test_static_loss_scaling(form_of_state):
    (grads,) = gradients(1)
    optimizer = make_optimizer(form_of_state, loss_scale_factor=1024.0)
    assert float(optimizer.scale_loss(1.0)) == 1024.0
    scaled = trajectory(optimizer, [[1024.0 * g for g in grads]])
    optimizer = make_optimizer(form_of_state)
    optimizer.scale_loss(1.0)
    assert_equal(scaled[0], trajectory(optimizer, [grads])[0], rtol=1e-5, atol=1e-6)


def test_dynamic_loss_scaling(form_of_state):
    """As keras.optimizers.LossScaleOptimizer's own tests have it."""
    inner = make_optimizer(form_of_state)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    variables, (grads,) = make_variables(), gradients(1)
    optimizer.apply([tf.constant(4.0 * g) for g in grads], variables)
    expected = trajectory(make_optimizer(form_of_state), [grads])[0]
    assert_equal([v.numpy() for v in variables], expected, rtol=1e-5, atol=1e-6)
    optimizer.apply([tf.constant(np.inf * g) for g in grads], variables)
    assert_equal([v.numpy() for v in variables], expected, rtol=1e-5, atol=1e-6)
    assert int(inner.iterations) == 1
    assert inner.skipped_steps == 0
    assert float(optimizer.dynamic_scale) == 2.0


def test_mixed_float16(form_of_state):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make_model(make_optimizer(form_of_state))
        before = [v.numpy() for v in model.variables]
        fit(model)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert all((v.numpy() != b).any() for v, b in zip(model.variables, before, strict=True))
    assert all(np.isfinite(v).all() for v in values(model))


# Saving.


def test_config_round_trips(rule):
    optimizer = make_optimizer(rule, learning_rate=0.5, total_steps=100, clipnorm=1.0, seed=7)
    for duplicate in (
        LearnedOptimizer.from_config(json.loads(json.dumps(optimizer.get_config()))),
        keras.optimizers.get(json.loads(json.dumps(keras.optimizers.serialize(optimizer)))),
        pickle.loads(pickle.dumps(optimizer)),
        copy.deepcopy(optimizer),
    ):
        assert duplicate.get_config() == optimizer.get_config()
        assert duplicate.rule == rule
        assert_equal(duplicate.theta.values(), optimizer.theta.values())
    steps = gradients(2)
    for a, b in zip(trajectory(optimizer, steps), trajectory(duplicate, steps), strict=True):
        assert_equal(a, b)


def test_set_weights(form_of_state):
    first, second = make_optimizer(form_of_state), make_optimizer(form_of_state)
    trajectory(first, gradients(2))
    with pytest.raises(ValueError, match="You are calling"):
        second.set_weights(first.variables)
    second.build(make_variables())
    second.set_weights(first.variables)
    assert_equal([v.numpy() for v in first.variables], [v.numpy() for v in second.variables])


def test_a_saved_model_continues_bit_for_bit(form_of_state, tmp_path):
    options = {"use_ema": True, "gradient_accumulation_steps": 3}
    model = fit(make_model(make_optimizer(form_of_state, **options)))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(values(model), values(restored))
    assert_equal(values(fit(model)), values(fit(restored)))


def test_saved_weights_and_tensorflow_checkpoints_continue_bit_for_bit(form_of_state, tmp_path):
    model = fit(make_model(make_optimizer(form_of_state)))
    model.save_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "ckpt"))
    expected = values(fit(model))
    from_weights = make_model(make_optimizer(form_of_state), seed=1)
    from_checkpoint = make_model(make_optimizer(form_of_state), seed=2)
    for other in (from_weights, from_checkpoint):
        other.optimizer.build(other.trainable_variables)
    from_weights.load_weights(tmp_path / "model.weights.h5")
    checkpoint = tf.train.Checkpoint(model=from_checkpoint, optimizer=from_checkpoint.optimizer)
    checkpoint.read(str(tmp_path / "ckpt")).assert_consumed()
    for other in (from_weights, from_checkpoint):
        assert_equal(expected, values(fit(other)))


def test_backup_and_restore_after_a_kill(form_of_state, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(seed, *callbacks):
        model = make_model(make_optimizer(form_of_state), seed=seed)
        # Before the backup, so that it holds what they told.
        told = [lopt_keras.callbacks.Horizon(), lopt_keras.callbacks.ValidationLoss()]
        fit(model, epochs=3, validation_data=(X, Y), callbacks=[*told, *callbacks])
        return values(model)

    def backup(**kwargs):
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", **kwargs)

    expected = run(0)
    with pytest.raises(KeyboardInterrupt):
        run(0, Kill(), backup(delete_checkpoint=False))
    assert_equal(expected, run(5, backup()))


@pytest.mark.parametrize("first_batch", [0.0, np.nan])
def test_a_model_that_fit_builds_trains_as_one_that_is_built(form_of_state, first_batch):
    def run(is_built):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        if is_built:
            model.build((None, 6))
        model.compile(make_optimizer(form_of_state, use_ema=True), "mse", jit_compile=False)
        return model

    built, unbuilt = (fit(run(is_built), X[:16] + first_batch) for is_built in (True, False))
    assert unbuilt.optimizer.skipped_steps == int(np.isnan(first_batch))
    # `fit` ends with the averages in the model, also if its only step was left out.
    assert_equal(values(built), values(unbuilt), rtol=1e-6)
    assert_equal(values(fit(built)), values(fit(unbuilt)), rtol=1e-6)


# Other parts of Keras.


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)
def test_several_optimizers_in_one_model(form_of_state):
    mine, adam = make_optimizer(form_of_state), keras.optimizers.Adam(0.01)
    optimizer_map = keras.optimizers.OptimizerMap(adam, {".*/kernel": mine})
    model = make_model(keras.optimizers.MultiOptimizer(optimizer_map))
    before = [v.numpy() for v in model.variables]
    fit(model)
    assert all((v.numpy() != b).any() for v, b in zip(model.variables, before, strict=True))
    assert (int(mine.iterations), int(adam.iterations)) == (4, 4)
    copied = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
    assert copied.get_config() == model.optimizer.get_config()


def test_low_rank_adaptation(form_of_state):
    model = make_model(make_optimizer(form_of_state))
    kernel = model.layers[0].kernel.numpy()
    model.layers[0].enable_lora(2)
    model.compile(make_optimizer(form_of_state), loss="mse", jit_compile=False)
    fit(model, epochs=2)
    lora = [v for v in model.layers[0].trainable_variables if "lora" in v.name]
    assert len(lora) == 2
    assert all(np.abs(v.numpy()).max() > 0 for v in lora)
    np.testing.assert_array_equal(model.layers[0]._kernel.numpy(), kernel)


def test_mirrored_strategy_equals_one_device_with_the_joint_batch(form_of_state, mirrored_strategy):
    assert mirrored_strategy.num_replicas_in_sync == 2
    with mirrored_strategy.scope():
        distributed = make_model(make_optimizer(form_of_state))
    single = make_model(make_optimizer(form_of_state))
    fit(distributed)
    fit(single)
    for a, b in zip(distributed.variables, single.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)
    assert_equal(
        [v.numpy() for v in distributed.optimizer.variables],
        [v.numpy() for v in single.optimizer.variables],
        rtol=1e-3,
        atol=1e-4,
    )
