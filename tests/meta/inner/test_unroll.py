import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import Quadratic, small_mlp

from lopt_keras import LearnedOptimizer, rules
from meta import estimators, random
from meta.inner import unroll

RULE = rules.FactoredMLP(hidden_size=4, step_mult=0.05, exp_mult=0.1)
SEED = random.seed(1)


def stack(thetas):
    return {name: tf.constant(np.stack([t[name] for t in thetas])) for name in thetas[0]}


def compiled(rule, task, length, num_problems, split="train"):
    """The program that makes of theta what an unroll returns."""

    @tf.function(jit_compile=True)
    def program(theta):
        inner = unroll.begin(rule, task, theta, SEED, num_problems)
        return unroll.run(rule, task, theta, inner, SEED, length, num_problems, split)

    return program


def run(rule, task, theta, length, num_problems, split="train"):
    return compiled(rule, task, length, num_problems, split)(theta)


def test_an_unroll_does_what_the_keras_optimizer_does():
    task, theta, length = small_mlp(), RULE.init_theta(0), 6
    trajectory, inner = run(RULE, task, stack([theta]), length, 1, "validation")

    optimizer = LearnedOptimizer(weights=theta, rule=RULE)
    setting = task.draw(random.fold_in(SEED, 0), 1)
    start = task.init(random.fold_in(SEED, 1), 1, setting)
    variables = [keras.Variable(p[0]) for p in start]
    for i in range(length):
        seed = random.fold_in(SEED, i)
        batch = task.batch("train", random.fold_in(seed, 0), 1, setting)
        held_out = task.batch("validation", random.fold_in(seed, 1), 1, setting)
        before = [v.numpy() for v in variables]
        with tf.GradientTape() as tape:
            params = [v.value[None] for v in variables]
            loss = task.loss(params, batch, setting)
        np.testing.assert_allclose(trajectory.train_loss[i], loss, rtol=1e-5)
        outer_loss = task.loss(params, held_out, setting)
        np.testing.assert_allclose(trajectory.outer_loss[i], outer_loss, rtol=1e-5)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        steps = np.concatenate(
            [(v.numpy() - b).ravel() for v, b in zip(variables, before, strict=True)]
        )
        np.testing.assert_allclose(trajectory.step_size[i], np.sqrt(np.mean(steps**2)), rtol=1e-3)
    for variable, param in zip(variables, inner.params, strict=True):
        np.testing.assert_allclose(variable.numpy(), param[0], rtol=1e-4, atol=1e-6)
    assert inner.step.numpy().tolist() == [length]


def test_outer_losses_are_those_of_the_averages_that_the_keras_optimizer_keeps():
    rule, task, length = rules.DirectionMixture(hidden_size=2), small_mlp(), 4
    theta = rule.init_theta(0)  # What it hears changes nothing before meta-training.
    trajectory, inner = run(rule, task, stack([theta]), length, 1, "validation")

    optimizer = LearnedOptimizer(weights=theta, rule=rule)
    setting = task.draw(random.fold_in(SEED, 0), 1)
    start = task.init(random.fold_in(SEED, 1), 1, setting)
    variables = [keras.Variable(p[0]) for p in start]
    optimizer.build(variables)
    averages = optimizer._model_variables_moving_average
    for i in range(length):
        seed = random.fold_in(SEED, i)
        batch = task.batch("train", random.fold_in(seed, 0), 1, setting)
        held_out = task.batch("validation", random.fold_in(seed, 1), 1, setting)
        kept = [a.value[None] for a in averages]
        for measured, data in (("kept_train_loss", batch), ("outer_loss", held_out)):
            loss = task.loss(kept, data, setting)
            np.testing.assert_allclose(getattr(trajectory, measured)[i], loss, rtol=1e-4)
        with tf.GradientTape() as tape:
            loss = task.loss([v.value[None] for v in variables], batch, setting)
        np.testing.assert_allclose(trajectory.train_loss[i], loss, rtol=1e-4)
        optimizer.observe(train_loss=loss[0])
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    assert (trajectory.kept_train_loss[-1] != trajectory.train_loss[-1]).numpy().all()
    for average, own in zip(averages, inner.kept, strict=True):
        np.testing.assert_allclose(average.numpy(), own[0], rtol=1e-4, atol=1e-6)


def test_particles_of_one_problem_see_the_same_problem():
    task = small_mlp()
    thetas = stack([RULE.init_theta(0), RULE.init_theta(1)] * 2)
    program = compiled(RULE, task, 3, num_problems=2)
    trajectory, _ = program(thetas)
    # Particles 0 and 2 share theta and problem; 1 and 3 share theta and the other problem.
    losses = trajectory.train_loss.numpy()
    np.testing.assert_array_equal(losses[:, :2], losses[:, 2:])
    assert (losses[:, 0] != losses[:, 1]).all()
    crossed = stack(
        [RULE.init_theta(0), RULE.init_theta(0), RULE.init_theta(1), RULE.init_theta(1)]
    )
    losses = program(crossed)[0].train_loss.numpy()
    np.testing.assert_array_equal(losses[0, :2], losses[0, 2:])
    assert (losses[2, :2] != losses[2, 2:]).all()


def test_an_unroll_can_be_continued():
    rule = rules.SGD(learning_rate=0.1)
    theta = stack([rule.init_theta()])
    whole, _ = run(rule, Quadratic(), theta, 6, 1)
    first, inner = run(rule, Quadratic(), theta, 4, 1)
    second, end = unroll.run(rule, Quadratic(), theta, inner, SEED, 2, 1)
    joined = np.concatenate([first.train_loss, second.train_loss])
    np.testing.assert_allclose(joined, whole.train_loss, rtol=1e-6)
    assert end.step.numpy().tolist() == [6]


def test_a_particle_with_an_unusable_gradient_stays_where_it_is():
    class Broken(Quadratic):
        def loss(self, params, data, setting):
            return super().loss(params, data, setting) * tf.constant([1.0, np.nan])

    rule = rules.SGD(learning_rate=0.1)
    _, inner = run(rule, Broken(), stack([rule.init_theta()] * 2), 3, 2)
    assert inner.params[0][1].numpy() == 1.0
    assert inner.params[0][0].numpy() < 1.0
    assert inner.step.numpy().tolist() == [3, 0]
    assert inner.rule_state.tensors[0]["m"][1].numpy() == 0.0


def test_the_same_seed_gives_the_same_program_bit_for_bit():
    task, theta = small_mlp(), stack([RULE.init_theta(0)])
    first, second = run(RULE, task, theta, 5, 1)[0], run(RULE, task, theta, 5, 1)[0]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


class Listener(rules.SGD):
    """SGD that keeps the sums of what it hears, and how often it heard it."""

    signals = ("train_loss", "validation_loss", "total_steps")

    def init_shared_state(self, theta):
        zeros = tf.zeros_like(theta["log_learning_rate"])
        return {f"{name}_{kind}": zeros for name in self.signals for kind in ("sum", "count")}

    def coordinate(self, theta, shared, summaries, signals):
        new = {}
        for name in self.signals:
            value, known = getattr(signals, name)
            new[f"{name}_sum"] = shared[f"{name}_sum"] + value
            new[f"{name}_count"] = shared[f"{name}_count"] + tf.cast(known, tf.float32)
        return new, [{}] * len(summaries)


def test_what_is_not_heard_passes_checks_of_numerics():
    rule, task = rules.LearnedHyperparameters(hidden_size=2), Quadratic()
    theta = stack([rule.init_theta(1)] * 2)

    def params(**told):
        inner = unroll.begin(rule, task, theta, SEED, 1, **told)
        return unroll.run(rule, task, theta, inner, SEED, 2, 1)[1].params[0]

    expected = params(validation_known=False)
    tf.debugging.enable_check_numerics()
    try:
        checked = params(validation_known=False)
    finally:
        tf.debugging.disable_check_numerics()
    np.testing.assert_array_equal(checked, expected)


def test_the_rule_hears_losses_and_the_horizon():
    rule, task = Listener(learning_rate=0.1), Quadratic()
    theta = stack([rule.init_theta()] * 2)

    @tf.function(jit_compile=True)
    def program():
        inner = unroll.begin(rule, task, theta, SEED, 1, total_steps=[12, 0])
        return unroll.run(rule, task, theta, inner, SEED, 12, 1)

    trajectory, inner = program()
    heard = {name: value.numpy() for name, value in inner.rule_state.shared.items()}
    np.testing.assert_allclose(heard["train_loss_sum"], trajectory.train_loss.numpy().sum(axis=0))
    assert heard["train_loss_count"].tolist() == [12, 12]
    # Every tenth step, from the first; the loss of this task has no noise.
    expected = trajectory.train_loss.numpy()[[0, 10]].sum(axis=0)
    np.testing.assert_allclose(heard["validation_loss_sum"], expected, rtol=1e-5)
    assert heard["validation_loss_count"].tolist() == [2, 2]
    assert heard["total_steps_sum"].tolist() == [12 * 12, 0]


@pytest.mark.parametrize(
    "rule",
    [
        rules.Hierarchical(hidden_size=2, lstm_size=2, hidden_layers=1, decays=(0.9,)),
        rules.Scheduled(rules.NormalizedMLP(hidden_size=2, hidden_layers=1), hidden_size=2),
        rules.LearnedHyperparameters(hidden_size=2),
        rules.Recurrent(hidden_size=2),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_learned_rules_can_be_meta_trained(rule):
    estimator = estimators.get(
        "es", rule, small_mlp(), num_particles=4, unroll_length=3, outer_split="validation"
    )
    theta = {name: tf.constant(value) for name, value in rule.init_theta(1).items()}
    estimate = tf.function(estimator.estimate, jit_compile=True)(
        theta, estimator.init_state(theta, SEED), SEED
    )
    gradient = {name: g.numpy() for name, g in estimate.gradient.items()}
    assert all(np.isfinite(g).all() for g in gradient.values())
    first_layers = [g for name, g in gradient.items() if name.endswith(("w0", "kernel0"))]
    assert first_layers
    assert all(g.any() for g in first_layers)
