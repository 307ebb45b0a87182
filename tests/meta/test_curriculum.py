import numpy as np
import pytest
import tensorflow as tf
from meta.training.curriculum import Curriculum

from meta import random


def lengths(curriculum, steps):
    length = tf.function(curriculum.length, jit_compile=True)
    seed = random.seed(1)
    return [int(length(tf.constant(i, tf.int64), random.fold_in(seed, i))) for i in steps]


def test_constant():
    assert Curriculum("constant", 40).length(tf.constant(3), random.seed(0)) == 40


def test_linear_and_exponential_go_from_the_shortest_to_the_longest():
    assert lengths(Curriculum("linear", 100, 20, 8), (0, 1, 4, 8, 20)) == [20, 30, 60, 100, 100]
    exponential = Curriculum("exponential", 160, 10, 8)
    assert lengths(exponential, (0, 2, 4, 6, 8, 20)) == [10, 20, 40, 80, 160, 160]


def test_log_uniform_has_as_many_lengths_in_every_octave():
    curriculum = Curriculum("log_uniform", 160, 10)
    drawn = np.array(lengths(curriculum, range(2000)))
    assert drawn.min() == 10
    assert drawn.max() == 160
    fractions = np.histogram(np.log2(drawn / 10 + 1e-6), bins=[0, 1, 2, 3, 5])[0] / len(drawn)
    np.testing.assert_allclose(fractions, 0.25, atol=0.04)
    # The outer step and the seed decide, nothing else.
    assert lengths(curriculum, range(20)) == drawn[:20].tolist()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nope", 10), "`schedule`.*'nope'"),
        (("constant", 0), "`longest`.*0"),
        (("linear", 10, 11, 5), "`shortest`.*11"),
        (("linear", 10, 0, 5), "`shortest`.*0"),
        (("exponential", 10, 5, 0), "`num_steps`.*0"),
        (("constant", 10, 5), "`shortest`.*5.*'constant'"),
        (("log_uniform", 10, 5, 7), "`num_steps`.*7.*'log_uniform'"),
        (("log_uniform", 10), "`shortest`.*None"),
        (("linear", 10, 5), "`num_steps`.*None"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises((TypeError, ValueError), match=text):
        Curriculum(*arguments)
