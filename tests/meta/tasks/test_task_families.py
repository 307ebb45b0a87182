"""What holds for every family of tasks."""

import functools
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from meta import random, tasks
from meta.tasks.sampling import distribution

SEED = random.seed(5)
NUM = 2


@functools.cache
def example(family):
    """A task of the family in two variants, its params, data and setting."""
    config = first_config(family)
    other = config._replace(setting=draw_setting(family, 1))
    task = tasks.build([config, other])
    setting = task.draw(random.fold_in(SEED, 3), NUM)
    params = task.init(random.fold_in(SEED, 1), NUM, setting)
    data = task.batch("train", random.fold_in(SEED, 2), NUM, setting)
    return task, params, data, setting


def first_config(family):
    of = "heldout_families" if family in distribution.HELD_OUT_FAMILIES else "train"
    architecture = distribution.architectures(family, of)[0]
    return tasks.Config(family, architecture, draw_setting(family, 0))


def draw_setting(family, number):
    rng = np.random.default_rng(number)
    ranges = tasks.FAMILIES[family].setting
    return {name: values.sample(rng, {}) for name, values in ranges.items()}


def program(family):
    """The compiled loss and gradient of the family's example."""
    return compiled(example(family)[0])


@functools.cache
def compiled(task):
    @tf.function(jit_compile=True, autograph=False)
    def loss_and_gradient(params, data, setting):
        with tf.GradientTape() as tape:
            tape.watch(params)
            loss = task.loss(params, data, setting)
        return loss, tape.gradient(loss, params, unconnected_gradients="zero")

    return loss_and_gradient


# One process compiles what the tests of a family share.
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in tasks.FAMILIES]
)


@every_family
def test_the_gradient_is_that_of_the_loss(family):
    _, params, data, setting = example(family)
    losses, grads = program(family)(params, data, setting)
    assert losses.shape == (NUM,)
    assert np.isfinite(losses).all()
    assert [g.shape for g in grads] == [p.shape for p in params]
    direction = [random.normal(p.shape, random.fold_in(SEED, 10 + i)) for i, p in enumerate(params)]
    slope = sum(
        np.sum(np.asarray(g * d, np.float64), axis=tuple(range(1, len(g.shape))))
        for g, d in zip(grads, direction, strict=True)
    )
    assert (np.abs(slope) > 0).all()
    differences = [
        (ahead.astype(np.float64) - behind) / (2 * step)
        for step in (3e-3, 1e-3, 3e-4)
        for ahead, behind in [
            [
                program(family)(
                    [p + s * d for p, d in zip(params, direction, strict=True)], data, setting
                )[0].numpy()
                for s in (step, -step)
            ]
        ]
    ]
    # Kinks and rounding spoil one step size or another, but not all of them.
    errors = np.abs(np.array(differences) - slope) / (np.abs(slope) + 1e-2)
    assert errors.min(axis=0).max() < 0.05


@every_family
def test_it_is_twice_differentiable_in_a_compiled_loop(family):
    task, params, data, setting = example(family)

    @tf.function(jit_compile=True, autograph=False)
    def meta_gradient(scale):
        """Of the loss after two steps of gradient descent, in their size."""
        with tf.GradientTape() as tape:
            tape.watch(scale)

            def body(i, params):
                with tf.GradientTape() as inner:
                    inner.watch(params)
                    loss = task.loss(params, data, setting)
                grads = inner.gradient(loss, params, unconnected_gradients="zero")
                return i + 1, [p - scale * g for p, g in zip(params, grads, strict=True)]

            start = (tf.constant(0), params)
            _, end = tf.while_loop(lambda i, _: i < 2, body, start, maximum_iterations=2)
            loss = tf.reduce_sum(task.loss(end, data, setting))
        return loss, tape.gradient(loss, scale)

    scale = tf.constant(1e-3)
    _, slope = meta_gradient(scale)
    differences = [
        (meta_gradient(scale + step)[0] - meta_gradient(scale - step)[0]) / (2 * step)
        for step in (1e-3, 3e-4, 1e-4)
    ]
    errors = [abs(d - slope) / (abs(slope) + 1e-2) for d in differences]
    assert min(errors) < 0.05


@every_family
def test_particles_do_not_interact(family):
    _, params, data, setting = example(family)
    losses, grads = program(family)(params, data, setting)
    first = [tf.reshape([1.0, 0.0], (NUM, *(1,) * (p.shape.rank - 1))) for p in params]
    # Scaled too: to add the same everywhere changes no softmax.
    moved = [p + f * (p + 1.0) for p, f in zip(params, first, strict=True)]
    moved_losses, moved_grads = program(family)(moved, data, setting)
    assert losses[0] != moved_losses[0]
    np.testing.assert_allclose(losses[1], moved_losses[1], rtol=1e-6)
    for grad, moved_grad in zip(grads, moved_grads, strict=True):
        np.testing.assert_allclose(grad[1], moved_grad[1], rtol=1e-5, atol=1e-7)


@every_family
def test_a_seed_means_the_same_inside_and_outside_of_xla(family):
    task, params, data, setting = example(family)

    @tf.function(jit_compile=True, autograph=False)
    def everything():
        setting = task.draw(random.fold_in(SEED, 3), NUM)
        params = task.init(random.fold_in(SEED, 1), NUM, setting)
        return params, task.batch("train", random.fold_in(SEED, 2), NUM, setting), setting

    expected = tf.nest.flatten((params, data, setting))
    for ours, theirs in zip(tf.nest.flatten(everything()), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape[0] == NUM
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@every_family
def test_splits_are_drawn_alike_and_seeds_differ(family):
    task, _, data, setting = example(family)
    specification = tf.nest.map_structure(lambda x: (x.shape, x.dtype), data)
    for split, seed in itertools.product(("train", "validation", "test"), (6, 7)):
        other = task.batch(split, random.seed(seed), NUM, setting)
        assert tf.nest.map_structure(lambda x: (x.shape, x.dtype), other) == specification
        losses = task.loss(task.init(random.seed(seed), NUM, setting), other, setting)
        assert np.isfinite(losses).all()
        starts = [task.init(random.seed(s), NUM, setting) for s in (seed, seed + 1)]
        assert any((a != b).numpy().any() for a, b in zip(*starts, strict=True))


@every_family
def test_a_variant_is_the_task_that_it_would_be_alone(family):
    task, params, data, setting = example(family)
    alone = tasks.build([first_config(family)])
    own_setting = alone.draw(random.fold_in(SEED, 3), NUM)
    own_params = alone.init(random.fold_in(SEED, 1), NUM, own_setting)
    own_data = alone.batch("train", random.fold_in(SEED, 2), NUM, own_setting)
    first = setting["variant"].numpy().tolist().index(0)
    for ours, theirs in zip(
        tf.nest.flatten((own_params, own_data, alone.loss(own_params, own_data, own_setting))),
        tf.nest.flatten((params, data, task.loss(params, data, setting))),
        strict=True,
    ):
        np.testing.assert_allclose(ours[first], theirs[first], rtol=1e-5, atol=1e-6)


@every_family
def test_a_variant_can_be_chosen(family):
    task = tasks.build([first_config(family)])
    drawn = task.draw(SEED, NUM)
    chosen = task.draw(SEED, NUM, variant=tf.zeros(NUM, tf.int32))
    # With one variant there is no choice, and all else is as it would be.
    tf.nest.map_structure(np.testing.assert_array_equal, chosen, drawn)


@every_family
def test_the_config_makes_the_task_again(family):
    task, params, data, setting = example(family)
    config = json.loads(json.dumps(task.get_config()))
    again = tasks.get(family, **config)
    assert again.get_config() == task.get_config()
    np.testing.assert_allclose(
        again.loss(params, data, setting), task.loss(params, data, setting), rtol=1e-6
    )


@every_family
def test_every_architecture_and_setting_can_be_drawn(family):
    cls = tasks.FAMILIES[family]
    fields = set(cls.__dataclass_fields__)
    assert set(cls.architecture) | set(cls.setting) <= fields
    assert set(cls.large) <= set(cls.architecture)
    assert not set(cls.architecture) & set(cls.setting)
    for name, values in {**cls.architecture, **cls.setting, **cls.large}.items():
        assert str(values), name
    assert "Args:" in (cls.__doc__ or "")
