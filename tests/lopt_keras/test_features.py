import numpy as np
import pytest

from lopt_keras import features, gating


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((5,), None),
        ((4, 6), (0, 1)),
        ((6, 4), (1, 0)),
        ((5, 5), (0, 1)),
        ((3, 3, 2, 4), (1, 3)),
        ((None, None), (0, 1)),
        ((None, None, None), (1, 2)),
    ],
)
def test_factored_axes_are_the_two_largest(shape, axes):
    assert features.factored_axes(shape) == axes


def test_time_embedding_by_hand():
    embedding = np.asarray(features.time_embedding(np.array([0, 30])))
    assert embedding.shape == (2, 11)
    np.testing.assert_allclose(embedding[0], np.tanh(-1.0), rtol=1e-6)
    # c = 30 is the fourth timescale, where t = 30 is the zero crossing.
    np.testing.assert_allclose(embedding[1, [0, 3]], [np.tanh(29.0), 0.0], atol=1e-7)


def test_zero_offsets_give_the_initial_decays():
    decays = (0.5, 0.9, 0.999)
    learned = features.decays_from_offsets(decays, np.zeros((1, 3), "float32"))
    np.testing.assert_allclose(np.asarray(learned)[0], decays, rtol=1e-6)
    longer = features.decays_from_offsets(decays, np.full((1, 3), -0.1, "float32"))
    np.testing.assert_allclose(1 - np.asarray(longer)[0], 1 - np.array(decays), rtol=0.64, atol=0)
    assert (np.asarray(longer) > np.asarray(learned)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_a_gradient_is_usable_if_its_squares_can_be_summed(bad):
    gradients = [np.ones((2, 3), "float32"), np.ones((2, 2, 2), "float32")]
    assert np.asarray(gating.gradients_are_usable(gradients)).tolist() == [True, True]
    gradients[1][1, 0, 1] = bad
    assert np.asarray(gating.gradients_are_usable(gradients)).tolist() == [True, False]


def test_select_chooses_per_particle():
    new, old = np.ones((2, 3)), np.zeros((2, 3))
    chosen = np.asarray(gating.select(np.array([True, False]), new, old))
    np.testing.assert_array_equal(chosen, [[1, 1, 1], [0, 0, 0]])
