import keras
import numpy as np
import pytest
import tensorflow as tf

from meta import random, tasks
from meta.tasks.families import densities

FLOWS = ("real_nvp", "maf")
SEED = random.seed(3)


def example(name, scale=1.0, **config):
    """A flow that is far from the identity, as `(task, params, setting)` of two particles."""
    task = tasks.get(name, activation="tanh", **config)
    setting = task.draw(SEED, 2)
    params = task.init(SEED, 2, setting)
    params = [
        p + scale * random.normal(p.shape, random.fold_in(SEED, i)) for i, p in enumerate(params)
    ]
    return task, params, setting


def jacobian(task, params, x):
    """`[P, B, dimension, dimension]`, of each point by itself."""
    x = tf.constant(x, tf.float32)
    particles, points, _ = x.shape
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = task.transform(params, x)[0]
    full = tape.jacobian(z, x).numpy()
    index = np.arange(points)
    return np.stack([full[p][index, :, p, index] for p in range(particles)])


@pytest.mark.parametrize("density", ["rings", "digits"])
@pytest.mark.parametrize("name", FLOWS)
def test_the_determinant_is_that_of_the_jacobian(name, density):
    # In 64 dimensions, farther from the identity, float32 does not hold the Jacobian.
    scale = 0.3 if density == "digits" else 1.0
    task, params, setting = example(name, scale, density=density, num_layers=3, batch_size=5)
    x = task.batch("train", SEED, 2, setting)
    _, log_determinant = task.transform(params, x)
    expected = np.linalg.slogdet(jacobian(task, params, x))
    np.testing.assert_array_equal(expected[0], 1.0)
    np.testing.assert_allclose(log_determinant, expected[1], rtol=1e-3, atol=1e-3)
    assert np.abs(expected[1]).max() > 0.3


@pytest.mark.parametrize("name", FLOWS)
def test_the_density_integrates_to_one(name):
    task, params, _ = example(name, scale=0.4, num_layers=2)
    axis = np.linspace(-25, 25, 1001)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(1, -1, 2)
    grid = tf.constant(np.concatenate([grid, grid]), tf.float32)
    total = np.exp(task.log_density(params, grid)).sum(axis=1) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(total, 1.0, atol=0.01)


@pytest.mark.parametrize("layer", [0, 1])
def test_each_map_of_a_maf_is_autoregressive(layer):
    task, params, setting = example("maf", density="digits", num_layers=2, hidden_units=(16, 24))
    length = len(params) // 2
    own = [tf.zeros_like(p) for p in params]
    part = slice(layer * length, (layer + 1) * length)
    own[part] = params[part]
    found = jacobian(task, own, task.batch("train", SEED, 2, setting)[:, :3])
    if layer:
        found = found[..., ::-1, ::-1]
    above = np.triu(np.ones((8, 8), bool), k=1)
    assert (found[..., above] == 0).all()
    # Every coordinate does depend on every one before it.
    assert (np.abs(found[..., ~above]).max(axis=(0, 1)) > 0).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_coupling_layer_leaves_half_of_the_coordinates(layer):
    task, params, setting = example("real_nvp", density="digits", num_layers=2)
    length = len(params) // 2
    own = [tf.zeros_like(p) for p in params]
    part = slice(layer * length, (layer + 1) * length)
    own[part] = params[part]
    x = task.batch("train", SEED, 2, setting)
    z = task.transform(own, x)[0].numpy()
    stays, moves = slice(layer, None, 2), slice(1 - layer, None, 2)
    np.testing.assert_array_equal(z[..., stays], x[..., stays])
    assert np.all(z[..., moves] != x[..., moves])
    of_moved = jacobian(task, own, x[:, :3])[..., moves, stays]
    assert (of_moved != 0).all()


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_zeros_is_a_standard_normal(name):
    task, params, setting = example(name, density="digits")
    x = task.batch("test", SEED, 2, setting)
    expected = 0.5 * np.mean(np.square(x), axis=(1, 2)) + 0.5 * np.log(2 * np.pi)
    loss = task.loss([tf.zeros_like(p) for p in params], x, setting)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_it_learns_a_mixture(name):
    task = tasks.get(name, density="mixture", noise=0.15, batch_size=128)
    setting = task.draw(SEED, 1)
    variables = [tf.Variable(p) for p in task.init(SEED, 1, setting)]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(variables)

    @tf.function
    def step(seed):
        with tf.GradientTape() as tape:
            loss = task.loss(variables, task.batch("train", seed, 1, setting), setting)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss[0]

    losses = [float(step(random.seed(i))) for i in range(400)]
    # Entropy of eight Gaussians that hardly overlap, for each dimension.
    entropy = (np.log(8) + np.log(2 * np.pi * np.e * 0.15**2)) / 2
    assert min(losses[0], 1.5) > np.mean(losses[-50:]) + 0.15
    assert np.mean(losses[-50:]) > entropy - 0.02


@pytest.mark.parametrize("name", densities.NAMES)
def test_densities_are_standardised(name):
    samplers, dimension = densities.splits(name)
    points = samplers["train"](SEED, (2, 4000)).numpy()
    assert points.shape == (2, 4000, dimension)
    np.testing.assert_allclose(points.mean(axis=(0, 1)), 0.0, atol=0.07)
    np.testing.assert_allclose(points.std(axis=(0, 1)), 1.0, atol=0.07)


def test_the_checkerboard_has_black_squares_only():
    points = densities.checkerboard(SEED, (1, 2000))[0].numpy() / 3**0.5
    column, row = np.floor((points + 1) * 2).astype(int).T
    assert set(zip(column, row, strict=True)) == {
        (i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0
    }


def test_an_unknown_density_is_named():
    with pytest.raises(ValueError, match="`density`.*'moon'"):
        tasks.get("maf", density="moon")
