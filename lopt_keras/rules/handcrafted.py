"""Hand-designed optimizers as update rules, their hyperparameters as theta.

A grid over learning rates is then a batch of particles, and "learned
hyperparameters" is meta-training of such a rule. Positive hyperparameters are
kept as logarithms, and decays b as log(1 - b), so that a perturbation of theta
is a relative one and no value of theta is out of range.
"""

import abc
import dataclasses

import numpy as np
from keras import ops

from lopt_keras import features, validation
from lopt_keras.rules import base


class HandDesigned(base.UpdateRule):
    """What they share: a theta of scalars that the constructor gives."""

    @abc.abstractmethod
    def _hyperparameters(self):
        """Theta as the constructor gives it: dict from name to float."""

    def theta_shapes(self):
        return {name: () for name in self._hyperparameters()}

    def init_theta(self, seed=0):
        """The constructor's hyperparameters; the seed plays no role."""
        return {name: np.float32(value) for name, value in self._hyperparameters().items()}


def scalar(theta, name, param):
    """`exp` of a theta entry `[P]`, shaped to scale `param`, `[P, *shape]`."""
    return ops.exp(ops.reshape(theta[name], (-1, *(1,) * (len(param.shape) - 1))))


@dataclasses.dataclass(frozen=True)
class SGD(HandDesigned):
    """Gradient descent with momentum, as `keras.optimizers.SGD`.

    Theta: `log_learning_rate`, `log_one_minus_momentum`, scalars.

    Args:
        learning_rate: positive.
        momentum: in [0, 1).
        nesterov: whether to step along the momentum after the next gradient.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self):
        validation.check_number("learning_rate", self.learning_rate, low_open=True)
        validation.check_number("momentum", self.momentum, high=1.0)
        validation.check_bool("nesterov", self.nesterov)

    def _hyperparameters(self):
        return {
            "log_learning_rate": np.log(self.learning_rate),
            "log_one_minus_momentum": np.log1p(-self.momentum),
        }

    def init_tensor_state(self, theta, param, name):
        return {"m": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        learning_rate = scalar(theta, "log_learning_rate", param)
        momentum = 1.0 - scalar(theta, "log_one_minus_momentum", param)
        m = momentum * state["m"] - learning_rate * grad
        update = momentum * m - learning_rate * grad if self.nesterov else m
        return update, {"m": m}


@dataclasses.dataclass(frozen=True)
class Adam(HandDesigned):
    """Adam (Kingma and Ba, arXiv 1412.6980), as `keras.optimizers.Adam`.

    Theta: `log_learning_rate`, `log_one_minus_beta_1`, `log_one_minus_beta_2`,
    `log_epsilon`, scalars.

    Args:
        learning_rate: positive.
        beta_1, beta_2: decays of the first and second moment, in [0, 1).
        epsilon: positive; the paper's "epsilon hat", before its section 2.1.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self):
        validation.check_number("learning_rate", self.learning_rate, low_open=True)
        validation.check_number("beta_1", self.beta_1, high=1.0)
        validation.check_number("beta_2", self.beta_2, high=1.0)
        validation.check_number("epsilon", self.epsilon, low_open=True)

    def _hyperparameters(self):
        return {
            "log_learning_rate": np.log(self.learning_rate),
            "log_one_minus_beta_1": np.log1p(-self.beta_1),
            "log_one_minus_beta_2": np.log1p(-self.beta_2),
            "log_epsilon": np.log(self.epsilon),
        }

    def init_tensor_state(self, theta, param, name):
        return {"m": ops.zeros_like(param), "v": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        learning_rate = scalar(theta, "log_learning_rate", param)
        epsilon = scalar(theta, "log_epsilon", param)
        beta_1 = 1.0 - scalar(theta, "log_one_minus_beta_1", param)
        beta_2 = 1.0 - scalar(theta, "log_one_minus_beta_2", param)
        m = features.accumulate(state["m"], grad, beta_1)
        v = features.accumulate(state["v"], ops.square(grad), beta_2)
        count = ops.reshape(ops.cast(signals.step, "float32") + 1.0, learning_rate.shape)
        correction = ops.sqrt(1.0 - ops.power(beta_2, count)) / (1.0 - ops.power(beta_1, count))
        update = -learning_rate * correction * m / (features.safe_sqrt(v) + epsilon)
        return update, {"m": m, "v": v}


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as `keras.optimizers.AdamW`.

    Theta: that of `Adam` and `log_weight_decay`.

    Args:
        learning_rate, beta_1, beta_2, epsilon: as `Adam`.
        weight_decay: positive; the fraction of a parameter that a step takes away
            is `learning_rate * weight_decay`.

    Reference:
        Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
    """

    weight_decay: float = 0.004

    def __post_init__(self):
        super().__post_init__()
        validation.check_number("weight_decay", self.weight_decay, low_open=True)

    def _hyperparameters(self):
        return {**super()._hyperparameters(), "log_weight_decay": np.log(self.weight_decay)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        update, state = super().update_tensor(theta, state, message, grad, param, signals)
        learning_rate = scalar(theta, "log_learning_rate", param)
        weight_decay = scalar(theta, "log_weight_decay", param)
        return update - learning_rate * weight_decay * param, state
