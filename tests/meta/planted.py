"""Update rules whose mechanism is known, to be found again."""

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from lopt_keras import features, rules
from lopt_keras.rules import base
from meta.analysis.subject import Subject


@dataclasses.dataclass(frozen=True)
class Planted(base.UpdateRule):
    """What they share: a theta that plays no role."""

    def theta_shapes(self):
        return {"unused": ()}

    def init_theta(self, seed=0):
        return {"unused": np.float32(0.0)}

    def init_tensor_state(self, theta, param, name):
        return {}


@dataclasses.dataclass(frozen=True)
class Clipped(Planted):
    """Gradients clipped to `[-down, up]`, with a rate of 0.1."""

    down: float = 0.5
    up: float = 0.5

    def update_tensor(self, theta, state, message, grad, param, signals):
        return -0.1 * ops.clip(grad, -self.down, self.up), {}


@dataclasses.dataclass(frozen=True)
class TwoMomenta(Planted):
    """A fast and a slow momentum, as AdEMAMix has them."""

    decays: tuple[float, float] = (0.8, 0.99)
    rates: tuple[float, float] = (0.3, 0.02)

    def init_tensor_state(self, theta, param, name):
        return {"fast": ops.zeros_like(param), "slow": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        fast = self.decays[0] * state["fast"] + grad
        slow = self.decays[1] * state["slow"] + grad
        return -self.rates[0] * fast - self.rates[1] * slow, {"fast": fast, "slow": slow}


@dataclasses.dataclass(frozen=True)
class TimedSGD(Planted):
    """Gradient descent at a rate of 0.1 times a function of the step, and of the horizon.

    Attributes:
        schedule: function of `[P]` steps and of the horizon, 0 where it is not known.
    """

    schedule: Any = None

    def update_tensor(self, theta, state, message, grad, param, signals):
        step = ops.cast(signals.step, "float32")
        factor = self.schedule(step, signals.total_steps.value)
        return -0.1 * features.broadcast_over(factor, len(param.shape) - 1) * grad, {}


@dataclasses.dataclass(frozen=True)
class Oscillator(Planted):
    """A state that turns by a constant angle and shrinks, pushed by the gradient."""

    period: float = 20.0
    decay: float = 1.0

    def init_tensor_state(self, theta, param, name):
        return {"x": ops.zeros_like(param), "y": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        c = self.decay * math.cos(2 * math.pi / self.period)
        s = self.decay * math.sin(2 * math.pi / self.period)
        x, y = c * state["x"] - s * state["y"] + grad, s * state["x"] + c * state["y"]
        return -0.1 * x, {"x": x, "y": y}


@dataclasses.dataclass(frozen=True)
class Mixture(Planted):
    """0.3 of Adam's step and 0.7 of that of momentum, both at a rate of 0.01."""

    fractions: tuple[float, float] = (0.3, 0.7)

    def _parts(self):
        return rules.Adam(0.01), rules.SGD(0.01, 0.9)

    def init_tensor_state(self, theta, param, name):
        adam, momentum = self._parts()
        return {
            **adam.init_tensor_state({}, param, name),
            "momentum": momentum.init_tensor_state({}, param, name)["m"],
        }

    def update_tensor(self, theta, state, message, grad, param, signals):
        own = [
            {name: ops.ones_like(theta["unused"]) * value for name, value in x.init_theta().items()}
            for x in self._parts()
        ]
        adam, momentum = self._parts()
        first, moments = adam.update_tensor(own[0], state, None, grad, param, signals)
        m = {"m": state["momentum"]}
        second, m = momentum.update_tensor(own[1], m, None, grad, param, signals)
        return self.fractions[0] * first + self.fractions[1] * second, {
            **moments,
            "momentum": m["m"],
        }


def subject(rule):
    """The `Subject` of a rule with the theta that it starts from."""
    return Subject.hand_designed(type(rule).__name__, rule)
