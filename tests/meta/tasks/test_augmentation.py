import json

import numpy as np
import pytest
import tensorflow as tf
from problems import Quadratic, small_mlp

from lopt_keras import rules
from meta import random, tasks
from meta.inner import unroll
from meta.tasks.sampling.augmentation import REPARAMETERISATIONS, Augmented
from meta.tasks.scoring.normalized import Normalized

SEED = random.seed(11)
NUM = 3


def drawn(task, num=NUM):
    """Setting, initial parameters and training batch of some problems."""
    setting = task.draw(SEED, num)
    return setting, task.init(SEED, num, setting), task.batch("train", SEED, num, setting)


def gradient(task, params, data, setting):
    with tf.GradientTape() as tape:
        tape.watch(params)
        loss = task.loss(params, data, setting)
    return loss, tape.gradient(loss, params)


def like(factor, param):
    return np.reshape(factor, (*factor.shape, *(1,) * (len(param.shape) - len(factor.shape))))


@pytest.mark.parametrize("kind", REPARAMETERISATIONS)
def test_the_loss_stays_and_the_gradient_is_multiplied_by_the_factor(kind):
    plain = small_mlp(activation="tanh")
    task = Augmented(plain, reparameterisation=kind, factors=(0.01, 100.0))
    setting, params, data = drawn(task)
    assert len(setting["factors"]) == {"none": 0, "task": 1}.get(kind, len(params))
    factors = [c.numpy() for c in setting["factors"]] or [np.ones(NUM, "float32")]
    factors = factors * len(params) if kind in ("none", "task") else factors
    factors = [like(c, p) for c, p in zip(factors, params, strict=True)]
    originals = [p * c for p, c in zip(params, factors, strict=True)]
    for ours, start in zip(originals, plain.init(SEED, NUM, setting["task"]), strict=True):
        np.testing.assert_allclose(ours, start, rtol=1e-5)
    loss, grads = gradient(task, params, data, setting)
    plain_loss, plain_grads = gradient(plain, originals, data[0], setting["task"])
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    for ours, theirs, factor in zip(grads, plain_grads, factors, strict=True):
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", REPARAMETERISATIONS[1:])
def test_factors_are_log_uniform(kind):
    setting = Augmented(small_mlp(), reparameterisation=kind).draw(SEED, 2000)
    for factor in setting["factors"]:
        exponents = np.log10(factor)
        assert exponents.shape[1:] == () or kind == "parameter"
        assert -3 <= exponents.min() < -2.9
        assert 2.9 < exponents.max() <= 3
        assert abs(exponents.mean()) < 0.15
        np.testing.assert_allclose(exponents.std(), 6 / np.sqrt(12), rtol=0.05)


def test_tensors_have_factors_of_their_own():
    setting = Augmented(small_mlp(), reparameterisation="tensor").draw(SEED, 50)
    exponents = np.log(setting["factors"])
    correlation = np.corrcoef(exponents) - np.eye(len(exponents))
    assert np.abs(correlation).max() < 0.5


def test_the_score_is_that_of_the_task():
    plain = small_mlp()
    task = Augmented(plain, loss_scale=(10.0, 1000.0))
    setting, params, data = drawn(task, 200)
    loss = task.loss(params, data, setting)
    expected = plain.loss(params, data[0], setting["task"])
    ratio = np.log10(loss / expected)
    assert 1 <= ratio.min() < 1.1
    assert 2.9 < ratio.max() <= 3
    np.testing.assert_allclose(task.score(loss, setting), expected, rtol=1e-5)
    stacked = task.score(tf.stack([loss, 2 * loss]), setting)
    np.testing.assert_allclose(stacked[1], 2 * expected, rtol=1e-5)


def test_noise_has_the_level_and_mean_zero():
    task = Augmented(small_mlp(), gradient_noise=(0.2, 0.6))
    setting, params, data = drawn(task, 400)
    _, grads = gradient(task, params, data, setting)
    level = setting["gradient_noise"].numpy()
    assert 0.2 <= level.min() < 0.25
    assert 0.55 < level.max() <= 0.6
    for seen, grad in zip(task.seen_gradient(grads, data, setting), grads, strict=True):
        axes = tuple(range(1, grad.shape.rank))
        rms = np.sqrt(np.mean(np.square(grad), axis=axes, keepdims=True))
        noise = (seen - grad) / (like(level, grad) * rms)
        assert abs(noise.numpy().mean()) < 5 / np.sqrt(noise.shape.num_elements())
        np.testing.assert_allclose(np.std(noise), 1.0, rtol=0.1)


def test_no_loss_has_noise():
    plain = small_mlp()
    task = Augmented(plain, gradient_noise=(1.0, 1.0))
    setting, params, _ = drawn(task)
    for split in ("train", "validation", "test"):
        data = task.batch(split, SEED, NUM, setting)
        loss, grads = gradient(task, params, data, setting)
        plain_loss, plain_grads = gradient(plain, params, data[0], setting["task"])
        np.testing.assert_array_equal(loss, plain_loss)
        for ours, theirs in zip(grads, plain_grads, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert bool(data[1]) == (split == "train")


def test_a_noisy_gradient_has_the_derivative_of_its_closed_form():
    task, curvature, level = Augmented(Quadratic(), gradient_noise=(0.5, 0.5)), 2.0, 0.5
    setting, params, data = drawn(task)
    with tf.GradientTape() as outer:
        outer.watch(params)
        _, grads = gradient(task, params, data, setting)
        seen = task.seen_gradient(grads, data, setting)
    # The root mean square of the only entry a x is a |x|, and x is one.
    noise = data[1][0]
    np.testing.assert_allclose(seen[0], curvature * (1.0 + level * noise), rtol=1e-6)
    slope = outer.gradient(seen, params)
    np.testing.assert_allclose(slope[0], curvature * (1.0 + level * noise), rtol=1e-6)


def test_a_gradient_of_zero_has_no_noise_and_a_finite_slope():
    task = Augmented(Quadratic(), gradient_noise=(0.5, 0.5))
    setting, _, data = drawn(task)
    params = [tf.zeros((NUM, 1))]
    with tf.GradientTape() as outer:
        outer.watch(params)
        _, grads = gradient(task, params, data, setting)
        seen = task.seen_gradient(grads, data, setting)
    np.testing.assert_allclose(seen[0], np.zeros((NUM, 1)), atol=1e-12)
    assert np.isfinite(outer.gradient(seen, params)[0]).all()


def disguised(gradient_noise):
    """A task with everything at once, in which SGD's steps are small enough for each factor."""
    plain = small_mlp(activation="tanh")
    return Augmented(plain, "tensor", (0.5, 2.0), gradient_noise, factors=(0.5, 2.0))


NOISY = (0.5, 1.0)


def outer_losses(task, log_rates):
    """Of three steps of SGD on two problems: `[3, P]`."""
    rule = rules.SGD()
    theta = {n: tf.fill(log_rates.shape, x) for n, x in rule.init_theta().items()}
    theta["log_learning_rate"] = log_rates
    inner = unroll.begin(rule, task, theta, SEED, 2)
    return unroll.run(rule, task, theta, inner, SEED, 3, 2)[0].outer_loss


def rates(particles):
    return tf.fill([particles], np.float32(np.log(0.1)))


def test_the_meta_gradient_is_that_of_the_score():
    task = disguised(NOISY)

    @tf.function(jit_compile=True, autograph=False)
    def score_and_slope(log_rates):
        with tf.GradientTape() as tape:
            tape.watch(log_rates)
            score = tf.reduce_sum(outer_losses(task, log_rates)[-1])
        return score, tape.gradient(score, log_rates)

    _, slope = score_and_slope(rates(2))
    ahead, behind = (score_and_slope(rates(2) + step)[0] for step in (0.02, -0.02))
    np.testing.assert_allclose(tf.reduce_sum(slope), (ahead - behind) / 0.04, rtol=0.01)


def test_pairs_see_the_same_disguise_and_noise():
    losses = outer_losses(disguised(NOISY), rates(4)).numpy()
    np.testing.assert_array_equal(losses[:, :2], losses[:, 2:])
    assert (losses[:, 0] != losses[:, 1]).all()


def test_an_optimizer_sees_the_noise_also_where_losses_are_normalised():
    noisy, quiet = disguised(NOISY), disguised((0.0, 0.0))
    ours, normalised, without = (
        outer_losses(task, rates(2)).numpy()
        for task in (noisy, Normalized(noisy, [2.0], [1.0]), quiet)
    )
    np.testing.assert_allclose(normalised, np.log(ours) / np.log(2.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(without[0], ours[0], rtol=1e-5)
    assert (without[1] != ours[1]).all()


def test_it_has_the_variants_clip_and_config_of_the_task():
    plain = tasks.get("quadratic", condition=[1.0, 10.0])
    task = Augmented(plain, "task", (0.1, 10.0), (0.0, 0.5))
    assert (task.name, task.num_variants, task.loss_clip) == ("quadratic", 2, plain.loss_clip)
    config = json.loads(json.dumps(task.get_config()))
    assert config.pop("augmentation") == {
        "reparameterisation": "task",
        "loss_scale": [0.1, 10.0],
        "gradient_noise": [0.0, 0.5],
        "factors": [1e-3, 1e3],
    }
    assert config == plain.get_config()
    chosen = task.draw(SEED, 2, tf.constant([1, 0]))
    assert chosen["variant"].numpy().tolist() == [1, 0]
    assert chosen["task"]["condition"].numpy().tolist() == [10.0, 1.0]


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({"reparameterisation": "nope"}, ValueError, "`reparameterisation`.*'nope'"),
        ({"loss_scale": (0.0, 1.0)}, ValueError, "`loss_scale`.*0.0"),
        ({"loss_scale": (2.0, 1.0)}, ValueError, "`loss_scale`.*\\(2.0, 1.0\\)"),
        ({"loss_scale": 2.0}, TypeError, "`loss_scale`.*2.0"),
        ({"gradient_noise": (-0.1, 1.0)}, ValueError, "`gradient_noise`.*-0.1"),
        ({"gradient_noise": ("a", 1.0)}, TypeError, "`gradient_noise`.*'a'"),
        ({"factors": (0.0, 1.0)}, ValueError, "`factors`.*0.0"),
    ],
)
def test_wrong_arguments_are_named(config, error, text):
    with pytest.raises(error, match=text):
        Augmented(Quadratic(), **config)
