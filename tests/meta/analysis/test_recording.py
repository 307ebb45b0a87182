import numpy as np
import planted
import pytest

from lopt_keras import rules
from meta import random, tasks
from meta.analysis import directions, recording, regularisation

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("recording")

SEED = random.seed(1)
STEPS = 12


def record(rule, **settings):
    task = tasks.get("two_moons", hidden_units=(4,), batch_size=8)
    arguments = {"num_problems": 2, **settings}
    return recording.record(planted.subject(rule), task, STEPS, SEED, **arguments)


@pytest.fixture(scope="module")
def mixed():
    return record(planted.Mixture())


def test_a_recording_is_the_training(mixed):
    assert [x.shape for x in mixed.params] == [
        (STEPS, 2, 2, 4), (STEPS, 2, 4), (STEPS, 2, 4, 2), (STEPS, 2, 2)
    ]  # fmt: skip
    assert mixed.kinds == ["matrix", "vector", "matrix", "vector"]
    for params, updates in zip(mixed.params, mixed.updates, strict=True):
        np.testing.assert_allclose(params[1:], (params + updates)[:-1], rtol=1e-5, atol=1e-7)
    # Momentum of known gradients.
    m = 0.0
    for t, grad in enumerate(mixed.grads[0]):
        m = 0.9 * m - 0.01 * grad
        np.testing.assert_allclose(mixed.states.tensors[0]["momentum"][t], m, rtol=1e-4, atol=1e-7)
    assert mixed.train_loss.shape == mixed.validation_loss.shape == (STEPS, 2)
    assert not mixed.diverged.any()


def test_states_are_kept_every_so_often_and_controls_of_rules_that_have_them():
    rule = rules.DirectionMixture(hidden_size=4, hidden_layers=1)
    found = record(rule, keep_states=5, signals_known=True, num_problems=1)
    assert found.kept_steps.tolist() == [4, 9]
    assert found.states.shared["average_weight"].shape == (2, 1)
    # Untrained, all is as its docstring says.
    assert found.controls["factor"].shape == (STEPS, 1, 4)
    np.testing.assert_allclose(found.controls["factor"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.controls["mix"], 0.0, atol=1e-6)
    np.testing.assert_allclose(found.controls["window"], 9.0, rtol=1e-6)
    assert found.total_steps == STEPS


def test_a_training_that_diverges_says_so():
    task, subject = tasks.get("quadratic", dimension=2), planted.subject(rules.SGD(1e6))
    found = recording.record(subject, task, STEPS, SEED, num_problems=2)
    assert found.diverged.tolist() == [True, True]


def test_a_mixture_of_directions_is_taken_apart(mixed):
    parts = directions.along(
        mixed, {name: directions.REFERENCES[name] for name in ("momentum", "Adam", "sign", "Muon")}
    )
    assert list(parts) == ["gradient", "momentum", "Adam", "sign", "Muon"]
    found = directions.explain(mixed.updates, parts, normalised=False)
    # The rates of the references are 1, those of the mixture 0.01.
    np.testing.assert_allclose(found.coefficients[1:3], [0.007, 0.003], rtol=0.01)
    np.testing.assert_allclose(found.coefficients[[0, 3, 4]], 0.0, atol=3e-5)
    assert found.variance > 0.9999
    assert found.lost[1] > 0.1 > found.lost[3]
    assert (found.alone < found.variance).all()


def test_steps_along_a_direction_have_cosine_one():
    sgd = record(rules.SGD(0.1, momentum=0.0))
    found = directions.explain(sgd.updates, {"gradient": sgd.grads})
    np.testing.assert_allclose([found.variance, *found.cosines, *found.coefficients], 1.0)
    with pytest.raises(ValueError, match="no steps to explain"):
        directions.explain([np.zeros((3, 1, 2))], {"gradient": [np.ones((3, 1, 2))]})


def test_a_weight_decay_is_recovered():
    rate, fraction = 0.01, 0.2
    found = record(rules.AdamW(rate, weight_decay=fraction))
    adam = directions.along(found, {"Adam": directions.REFERENCES["Adam"]})
    decay = regularisation.decay(found, adam)
    np.testing.assert_allclose(decay.fraction, rate * fraction, rtol=0.01)
    without = regularisation.decay(record(rules.Adam(rate)), adam)
    assert abs(without.fraction) < 5e-5
    assert decay.along > without.along
    assert (decay.growth < without.growth).all()


def test_losses_are_compared_at_equal_training_loss():
    fast, slow = record(rules.SGD(0.3)), record(rules.SGD(0.1))
    found = regularisation.at_equal_training_loss(fast, fast, num_levels=3)
    np.testing.assert_array_equal(found.first, found.second)
    assert (np.diff(found.levels) < 0).all()
    # The larger rate is the one that gets further away from the start, at the same steps.
    both = regularisation.at_equal_training_loss(fast, slow, num_levels=3)
    assert both.levels[-1] == regularisation.at_equal_training_loss(slow, slow).levels[-1]
    standing = record(rules.SGD(1e-12))
    with pytest.raises(ValueError, match="no training losses in common"):
        regularisation.at_equal_training_loss(standing, fast)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`num_steps`"):
        recording.record(planted.subject(rules.SGD()), None, 0, SEED)
