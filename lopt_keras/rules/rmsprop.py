"""RMSprop as an update rule."""

import dataclasses

import numpy as np
from keras import ops

from lopt_keras import features, validation
from lopt_keras.rules import hand_designed


@dataclasses.dataclass(frozen=True)
class RMSprop(hand_designed.HandDesigned):
    """Gradients over the root of their mean square, as `keras.optimizers.RMSprop`.

    Theta: `log_learning_rate`, `log_one_minus_rho`, `log_epsilon`, scalars.

    Args:
        learning_rate: positive.
        rho: decay of the mean square, in [0, 1).
        epsilon: positive, under the root.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Hinton, Neural Networks for Machine Learning, lecture 6e.
    """

    learning_rate: float = 0.001
    rho: float = 0.9
    epsilon: float = 1e-7

    def __post_init__(self):
        validation.check_number("learning_rate", self.learning_rate, low_open=True)
        validation.check_number("rho", self.rho, high=1.0)
        validation.check_number("epsilon", self.epsilon, low_open=True)

    def _hyperparameters(self):
        return {
            "log_learning_rate": np.log(self.learning_rate),
            "log_one_minus_rho": np.log1p(-self.rho),
            "log_epsilon": np.log(self.epsilon),
        }

    def init_tensor_state(self, theta, param, name):
        return {"v": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        learning_rate = hand_designed.scalar(theta, "log_learning_rate", param)
        rho = 1.0 - hand_designed.scalar(theta, "log_one_minus_rho", param)
        epsilon = hand_designed.scalar(theta, "log_epsilon", param)
        v = features.accumulate(state["v"], ops.square(grad), rho)
        return -learning_rate * grad * ops.rsqrt(v + epsilon), {"v": v}
