import numpy as np
import planted
import pytest

from lopt_keras import rules
from meta.analysis import clipping
from meta.analysis.dynamics import Dynamics


class Stateful(planted.Clipped):
    """With a number of state, which `Dynamics` needs."""

    def init_tensor_state(self, theta, param, name):
        return {"unused": 0.0 * param}

    def update_tensor(self, theta, state, message, grad, param, signals):
        return super().update_tensor(theta, state, message, grad, param, signals)[0], state


def measured(rule, state=None, **settings):
    dynamics = Dynamics(planted.subject(rule))
    state = dynamics.start() if state is None else state
    return clipping.measure(dynamics, state, **settings)


def test_a_threshold_is_found_to_a_percent():
    found = measured(Stateful(0.5, 0.5))
    np.testing.assert_allclose(found.thresholds, [0.5, 0.5], rtol=0.01)
    np.testing.assert_allclose(found.saturations, [0.05, 0.05], rtol=0.01)
    np.testing.assert_allclose(found.slope, 0.1, rtol=0.01)
    assert 0.4 < found.linear_range < 0.6
    assert found.asymmetry < 1e-5


def test_two_different_thresholds_are_two():
    found = measured(Stateful(0.5, 1.5))
    np.testing.assert_allclose(found.thresholds, [0.5, 1.5], rtol=0.01)
    assert found.asymmetry > 0.2


def test_momentum_does_not_clip():
    found = measured(rules.SGD(0.1, 0.9))
    assert found.thresholds == (np.inf, np.inf)
    np.testing.assert_allclose(found.slope, 0.1, rtol=1e-3)
    np.testing.assert_allclose(found.linear_range, 1e3, rtol=1e-6)


def test_adam_clips_by_its_second_moment():
    """With m = 0, v = 1: the step is `lr 0.1 g / sqrt(0.999 + 0.001 g^2)`."""
    found = measured(rules.Adam(0.01), [0.0, 1.0])
    level = 0.01 * 0.1 / np.sqrt(0.001)
    np.testing.assert_allclose(found.saturations, [level, level], rtol=0.01)
    np.testing.assert_allclose(found.thresholds, level / (0.001 / np.sqrt(0.999)), rtol=0.01)


def test_a_step_that_ignores_the_gradient_is_refused():
    with pytest.raises(ValueError, match="does not depend on the gradient"):
        measured(Stateful(0.0, 0.0))
