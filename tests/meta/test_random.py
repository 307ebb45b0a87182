import numpy as np
import pytest
import tensorflow as tf

from meta import random

SAMPLERS = {
    "integers": lambda seed: random.integers((64,), seed, 1197),
    "uniform": lambda seed: random.uniform((64,), seed),
    "normal": lambda seed: random.normal((64,), seed),
    "fold_in": lambda seed: random.fold_in(seed, 3),
    "sampled_from_folded": lambda seed: random.normal((8,), random.fold_in(seed, 3)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_inside_and_outside_of_xla(name):
    sampler = SAMPLERS[name]
    compiled = tf.function(sampler, jit_compile=True)
    seeds = np.random.RandomState(0).randint(0, 2**31 - 1, (30, 2)).astype("int32")
    for seed in [*seeds, [0, 0], [2**31 - 1, 0], [-1, -(2**31)]]:
        seed = tf.constant(seed, tf.int32)
        np.testing.assert_allclose(sampler(seed), compiled(seed), rtol=1e-4, atol=1e-6)
    folded = tf.function(lambda: sampler(seed), jit_compile=True)
    np.testing.assert_allclose(sampler(seed), folded(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_known_answers_of_threefry(key, counter, expected):
    # From the file kat_vectors of Random123, the authors' own library.
    key, counter = (tuple(tf.constant(words, tf.uint32)) for words in (key, counter))
    words = random.threefry(key, *counter)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("shape", [(), (8,)])
def test_a_traced_hash_is_one_node_and_keeps_its_static_shape(shape):
    traced = tf.function(random.threefry, autograph=False)
    word, counter = tf.TensorSpec((), tf.uint32), tf.TensorSpec(shape, tf.uint32)
    program = traced.get_concrete_function((word, word), counter, word)
    assert [output.shape for output in program.outputs] == [shape, shape]
    # Two words of a key, two of a counter, the hash, and its two results.
    assert len(program.graph.get_operations()) == 7


@pytest.mark.parametrize("compiled", [True, False])
def test_one_hash_gives_what_many_would(compiled):
    shapes = [(3, 5), (), (70,)]

    def together(seed):
        seeds = random.split(seed, len(shapes))
        uniform = random.uniforms(shapes, seeds, -1.0, 3.0)
        return seeds, uniform, random.normals(shapes, seeds)

    seed = random.seed(5)
    seeds, uniform, normal = tf.function(together, jit_compile=compiled)(seed)
    for i, shape in enumerate(shapes):
        own = random.fold_in(seed, i)
        np.testing.assert_array_equal(seeds[i], own)
        np.testing.assert_array_equal(uniform[i], random.uniform(shape, own, -1.0, 3.0))
        np.testing.assert_allclose(normal[i], random.normal(shape, own), rtol=1e-5, atol=1e-6)
    assert random.uniforms([], []) == random.normals([], []) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_seeds_differ(name):
    seeds = [random.fold_in(random.seed(1), i) for i in range(50)]
    assert len({SAMPLERS[name](seed).numpy().tobytes() for seed in seeds}) == 50


def test_moments_and_bounds():
    x = random.uniform((100_000,), random.seed(1), -2.0, 1.0).numpy()
    assert -2.0 < x.min() < -1.999
    assert 0.999 < x.max() < 1.0
    np.testing.assert_allclose([x.mean(), x.std()], [-0.5, 3 / 12**0.5], atol=0.01)
    x = random.normal((100_000,), random.seed(2)).numpy()
    moments = [np.mean(x**k) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.1)
    x = random.integers((100_000,), random.seed(3), 4).numpy()
    np.testing.assert_allclose(np.bincount(x, minlength=4) / len(x), 0.25, atol=0.01)


def test_neither_neighbours_nor_seeds_are_correlated():
    x = np.stack([random.normal((20_000,), random.fold_in(random.seed(4), i)) for i in range(4)])
    others = np.concatenate([x, np.roll(x[:1], 1), np.roll(x[:1], 2)])
    correlations = np.corrcoef(others) - np.eye(len(others))
    assert np.abs(correlations).max() < 5 / 20_000**0.5


def test_numbers_are_not_seeds():
    seed = random.seed(5)
    folded = {tuple(random.fold_in(seed, i).numpy()) for i in range(100)}
    drawn = random.integers((200,), seed, 2**31).numpy()
    assert not {first & (2**31 - 1) for first, _ in folded} & {int(x) for x in drawn}
