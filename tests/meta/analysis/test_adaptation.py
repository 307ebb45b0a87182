import numpy as np
import planted
import pytest

from lopt_keras import rules
from meta.analysis import adaptation
from meta.analysis.dynamics import Dynamics

GRADIENTS = np.geomspace(0.01, 100.0, 9)


def measured(rule):
    return adaptation.measure(Dynamics(planted.subject(rule)), GRADIENTS, num_steps=300)


def test_sgd_is_proportional_to_the_gradient():
    found = measured(rules.SGD(0.1, 0.9))
    np.testing.assert_allclose(found.exponent, 1.0, atol=1e-3)
    np.testing.assert_allclose(found.rates, 0.1 / (1 - 0.9), rtol=1e-3)


def test_adam_does_not_depend_on_the_size_of_gradients():
    found = measured(rules.Adam(0.1, beta_2=0.95))
    assert abs(found.exponent) < 1e-3
    np.testing.assert_allclose(found.updates, -0.1, rtol=1e-3)


def test_rmsprop_has_its_epsilon():
    """The rate is `lr / sqrt(g^2 + epsilon)`: constant below 1, falling as 1 / g above."""
    found = measured(rules.RMSprop(0.1, 0.9, epsilon=1.0))
    np.testing.assert_allclose(found.rates, 0.1 / np.sqrt(GRADIENTS**2 + 1.0), rtol=1e-3)
    np.testing.assert_allclose(found.exponents[[0, -1]], [1.0, 0.0], atol=0.01)


def test_wrong_gradients_are_refused():
    with pytest.raises(ValueError, match="`gradients` must be positive and growing"):
        adaptation.measure(Dynamics(planted.subject(rules.SGD())), [1.0, -1.0])
