import numpy as np
import planted
import pytest

from meta.analysis import state_space
from meta.analysis.dynamics import Dynamics

PERIOD = 20


@pytest.fixture(scope="module")
def oscillation():
    """Two periods of an oscillator that was pushed once."""
    dynamics = Dynamics(planted.subject(planted.Oscillator(PERIOD)))
    gradients = np.zeros(2 * PERIOD)
    gradients[0] = 3.0
    states, updates = dynamics.run(gradients)
    return dynamics, states, updates


def test_an_oscillator_is_a_circle(oscillation):
    _, states, updates = oscillation
    found = state_space.components(states)
    np.testing.assert_allclose(found.fractions, [0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(found.dimension, 2.0, atol=0.01)
    coordinates = found.project(states)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=1), 3.0, rtol=1e-3)
    np.testing.assert_allclose(found.restore(coordinates), states, atol=1e-4)
    # It comes back after a period.
    np.testing.assert_allclose(states[PERIOD:], states[:PERIOD], atol=1e-3)
    np.testing.assert_allclose(updates, -0.1 * states[:, 0], rtol=1e-4)


def test_the_flow_turns_by_the_angle(oscillation):
    dynamics, states, _ = oscillation
    found = state_space.components(states)
    flow = state_space.flow(dynamics, found, states, num=6)
    radius = np.hypot(flow.first, flow.second)
    speed = np.hypot(flow.first_speed, flow.second_speed)
    np.testing.assert_allclose(speed, 2 * np.sin(np.pi / PERIOD) * radius, rtol=0.01)
    # Nearly at right angles to the radius.
    inward = flow.first * flow.first_speed + flow.second * flow.second_speed
    np.testing.assert_allclose(inward / (radius * speed), -np.sin(np.pi / PERIOD), atol=0.01)


def test_accumulators_of_different_units_can_be_compared():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((200, 3)) * [1.0, 1e3, 0.0] + [0.0, 0.0, 7.0]
    assert state_space.components(states).fractions[0] > 0.99
    standardised = state_space.components(states, standardised=True)
    np.testing.assert_allclose(standardised.fractions[:2], [0.5, 0.5], atol=0.1)


def test_states_that_do_not_differ_are_refused():
    with pytest.raises(ValueError, match="`states` must differ"):
        state_space.components(np.ones((4, 2)))
    with pytest.raises(ValueError, match="finite"):
        state_space.components([[np.nan], [1.0]])
