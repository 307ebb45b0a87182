import numpy as np
import planted
import pytest

from lopt_keras import rules
from meta.analysis import linearisation
from meta.analysis.dynamics import Dynamics
from meta.analysis.linearisation import linearise

BETA, RATE = 0.9, 0.1


def modes(rule, **settings):
    dynamics = Dynamics(planted.subject(rule), **settings)
    found = linearise(dynamics, dynamics.settle(num_steps=3))
    assert found.error < 1e-4
    return found


def test_momentum_has_its_decay_and_rate():
    found = modes(rules.SGD(RATE, BETA))
    np.testing.assert_allclose(found.momenta, [BETA], rtol=1e-4)
    np.testing.assert_allclose(found.rates, [RATE], rtol=1e-4)
    np.testing.assert_allclose(found.rate, RATE / (1 - BETA), rtol=1e-4)
    np.testing.assert_allclose(found.momentum, BETA, rtol=1e-4)
    np.testing.assert_allclose(found.timescales, [-1 / np.log(BETA)], rtol=1e-3)


def test_nesterov_is_momentum_and_a_step_at_once():
    found = modes(rules.SGD(RATE, BETA, nesterov=True))
    np.testing.assert_allclose(found.eigenvalues, [BETA, 0.0], atol=1e-4)
    np.testing.assert_allclose(found.rates, [BETA * RATE, RATE], rtol=1e-4)


def test_two_momenta_are_told_apart():
    rule = planted.TwoMomenta()
    found = modes(rule)
    order = np.argsort(found.momenta)
    np.testing.assert_allclose(found.momenta[order], rule.decays, rtol=1e-4)
    np.testing.assert_allclose(found.rates[order], rule.rates, rtol=1e-4)


def test_adam_under_noise_is_momentum_at_a_rate_that_the_noise_sets():
    noise = 0.2
    dynamics = Dynamics(planted.subject(rules.Adam(RATE, BETA, 0.99)), noise=noise)
    found = linearise(dynamics, [0.0, noise**2])
    # In the order of their names: m, v. The mean of many signs has no part in v.
    np.testing.assert_allclose(found.momenta[0], BETA, rtol=1e-4)
    np.testing.assert_allclose(found.rate, RATE / noise, rtol=0.02)


def test_an_oscillator_has_complex_eigenvalues_of_its_period():
    found = modes(planted.Oscillator(period=20.0, decay=0.95))
    np.testing.assert_allclose(found.momenta, [0.95, 0.95], rtol=1e-4)
    np.testing.assert_allclose(2 * np.pi / np.abs(np.angle(found.eigenvalues)), 20.0, rtol=1e-4)


def test_the_optimal_momentum_is_the_best_of_a_grid():
    lowest, highest = 0.01, 1.0
    rate, momentum = linearisation.optimal_momentum(lowest, highest)

    def slowest(rate, momentum):
        """The largest eigenvalue of heavy ball on the quadratic."""
        radii = []
        for curvature in (lowest, highest):
            matrix = [[1 + momentum - rate * curvature, -momentum], [1.0, 0.0]]
            radii.append(np.abs(np.linalg.eigvals(matrix)).max())
        return max(radii)

    best = slowest(rate, momentum)
    for other in (0.9, 0.97, 1.03, 1.1):
        assert slowest(rate * other, momentum) > best - 1e-6
        assert slowest(rate, momentum * other) > best - 1e-6


def test_a_rule_without_derivative_is_refused():
    dynamics = Dynamics(planted.subject(rules.Adam()))
    with pytest.raises(ValueError, match="no finite derivative"):
        linearise(dynamics, [np.nan, 1.0])
    with pytest.raises(ValueError, match="`highest`"):
        linearisation.optimal_momentum(1.0, 0.5)
