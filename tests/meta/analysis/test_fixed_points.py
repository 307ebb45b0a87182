import numpy as np
import planted
import pytest

from lopt_keras import rules
from meta.analysis import fixed_points
from meta.analysis.dynamics import Dynamics
from meta.analysis.subject import Subject

GRADIENTS = (0.0, -0.5, 2.0)
RULES = {
    "momentum": (rules.SGD(0.1, 0.9), lambda g: {"m": -0.1 * g / (1 - 0.9)}),
    "rmsprop": (rules.RMSprop(0.01, 0.95), lambda g: {"v": g * g}),
    "adam": (rules.Adam(0.01, beta_2=0.99), lambda g: {"m": g, "v": g * g}),
}
"""Each with its fixed point in closed form."""


@pytest.mark.parametrize("name", RULES)
def test_the_fixed_points_of_known_rules_are_found(name):
    rule, closed_form = RULES[name]
    dynamics = Dynamics(planted.subject(rule))
    rng = np.random.default_rng(0)
    # A second moment is not negative.
    starts = np.abs(rng.standard_normal((6, dynamics.size)))
    for gradient, found in zip(
        GRADIENTS, fixed_points.along(dynamics, starts, GRADIENTS), strict=True
    ):
        assert found.counts.tolist() == [7], gradient
        expected = [closed_form(gradient)[entry] for entry in dynamics.entries()]
        np.testing.assert_allclose(found.states[0], expected, rtol=1e-4, atol=1e-4)


def test_noise_gives_adam_a_second_moment():
    dynamics = Dynamics(planted.subject(rules.Adam(0.01)), shape=(3,), noise=0.5)
    found = fixed_points.find(dynamics, np.ones((2, dynamics.size)))
    np.testing.assert_allclose(found.states, [[0, 0, 0, 0.25, 0.25, 0.25]], atol=1e-4)


def test_two_fixed_points_of_one_map_are_two():
    """Of a recurrent rule: a hidden unit that feeds itself strongly has two."""
    rule = rules.Recurrent(hidden_size=1)
    theta = rule.init_theta()
    theta |= {
        "kernel0": [[0.0, 0.0, 1.0]],
        "recurrent_kernel0": [[0.0, 0.0, 4.0]],
        "bias0": [0.0, 20.0, 0.0],
    }
    dynamics = Dynamics(Subject("latch", rule, theta))
    found = fixed_points.find(dynamics, [[-1.0], [-0.5], [0.5], [0.8], [1.0]])
    # h = tanh(4 h): three solutions, of which zero repels what does not start there.
    np.testing.assert_allclose(np.abs(found.states), [[0.99933], [0.99933]], rtol=1e-4)
    assert found.states[0] > 0 > found.states[1]
    assert found.counts.tolist() == [3, 2]


def test_a_state_that_never_stands_still_has_no_fixed_point():
    dynamics = Dynamics(planted.subject(planted.Oscillator(period=1.0)))
    # A turn by a whole circle: the gradient is added again and again.
    found = fixed_points.find(dynamics, [[0.0, 0.0], [1.0, 0.0]], gradient=0.5)
    assert len(found.states) == 0
    np.testing.assert_allclose(found.slowest, 0.125, rtol=1e-3)


def test_wrong_arguments_are_named():
    dynamics = Dynamics(planted.subject(rules.SGD()))
    with pytest.raises(ValueError, match=r"`starts` must have the shape \[N, 1\]"):
        fixed_points.find(dynamics, [[1.0, 2.0]])
    with pytest.raises(ValueError, match="`starts` must be finite"):
        fixed_points.find(dynamics, [[np.nan]])
    with pytest.raises(ValueError, match="`tolerance`"):
        fixed_points.find(dynamics, [[1.0]], tolerance=0.0)
    with pytest.raises(ValueError, match="The state of .* must have 1 to 2048 numbers. It has 0"):
        Dynamics(planted.subject(planted.Clipped()))
