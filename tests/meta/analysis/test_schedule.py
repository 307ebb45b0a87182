import functools
import math

import numpy as np
import planted
import pytest
from keras import ops

from lopt_keras import rules
from meta.analysis import schedule
from meta.analysis.dynamics import Dynamics

STEPS = 60


@functools.cache
def fitted(name):
    rule = Stateful(SCHEDULES[name][0])
    dynamics = Dynamics(planted.subject(rule), noise=0.5, total_steps=STEPS)
    drift = schedule.drift(dynamics, STEPS)
    return drift, schedule.fit(drift.steps, drift.rates)


class Stateful(planted.TimedSGD):
    """With a number of state, which `Dynamics` needs."""

    def init_tensor_state(self, theta, param, name):
        return {"unused": 0.0 * param}

    def update_tensor(self, theta, state, message, grad, param, signals):
        return super().update_tensor(theta, state, message, grad, param, signals)[0], state


SCHEDULES = {
    "constant": (lambda t, total: ops.ones_like(t), math.nan),
    "linear decay to 0 at T": (lambda t, total: 1.0 - t / total, STEPS),
    "cosine to 0 at T": (lambda t, total: 0.5 + 0.5 * ops.cos(math.pi * t / 90.0), 90.0),
    "1 / (1 + t / T)": (lambda t, total: 1.0 / (1.0 + t / 25.0), 25.0),
    "1 / sqrt(1 + t / T)": (lambda t, total: ops.rsqrt(1.0 + t / 10.0), 10.0),
    "exp(-t / T)": (lambda t, total: ops.exp(-t / 30.0), 30.0),
}
"""Each with its time."""


@pytest.mark.parametrize("name", SCHEDULES)
def test_shape_and_time_are_found(name):
    drift, fit = fitted(name)
    assert fit.shape == name
    np.testing.assert_allclose(fit.rate, 0.1, rtol=0.01)
    np.testing.assert_allclose(fit.time, SCHEDULES[name][1], rtol=0.01)
    assert fit.error < 1e-3
    assert drift.peak == 0


def test_adam_warms_up_with_a_longer_memory_of_squares():
    """Its bias corrections: at first a step of the whole rate, later of a tenth."""
    dynamics = Dynamics(planted.subject(rules.Adam(0.01)), noise=0.5)
    drift = schedule.drift(dynamics, STEPS)
    np.testing.assert_allclose(drift.rates[0], 0.01 / 0.5, rtol=1e-3)
    # m without bias has a weight of 0.1 for the newest gradient, and v is the noise's square.
    bias = 1 - 0.9**STEPS
    np.testing.assert_allclose(drift.rates[-1], 0.001 / 0.5 / bias, rtol=0.01)
    np.testing.assert_allclose(drift.offsets, 0.0, atol=1e-7)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="`rates` must be 4 or more"):
        schedule.fit([0, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="`noise` must be positive"):
        schedule.drift(Dynamics(planted.subject(rules.Adam())), 10)


def test_a_rate_that_hardly_changes_is_constant():
    steps = np.arange(200)
    assert schedule.fit(steps, 1.0 - steps / 2e5).shape == "constant"
    assert schedule.fit(steps, 1.0 - steps / 2e4).shape != "constant"
