"""Lion as an update rule."""

import dataclasses

import numpy as np
from keras import ops

from lopt_keras import features, validation
from lopt_keras.rules import hand_designed


@dataclasses.dataclass(frozen=True)
class Lion(hand_designed.HandDesigned):
    """The sign of a momentum, as `keras.optimizers.Lion`.

    Theta: `log_learning_rate`, `log_one_minus_beta_1`, `log_one_minus_beta_2`, scalars.

    Args:
        learning_rate: positive; what every parameter moves in a step.
        beta_1: fraction of the momentum in the mean whose sign is taken, in (0, 1).
        beta_2: decay of the momentum, in [0, 1).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Chen et al., arXiv 2302.06675, algorithm 2, without weight decay.
    """

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.99

    def __post_init__(self):
        validation.check_number("learning_rate", self.learning_rate, low_open=True)
        validation.check_number("beta_1", self.beta_1, high=1.0, low_open=True)
        validation.check_number("beta_2", self.beta_2, high=1.0)

    def _hyperparameters(self):
        return {
            "log_learning_rate": np.log(self.learning_rate),
            "log_one_minus_beta_1": np.log1p(-self.beta_1),
            "log_one_minus_beta_2": np.log1p(-self.beta_2),
        }

    def init_tensor_state(self, theta, param, name):
        return {"m": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        learning_rate = hand_designed.scalar(theta, "log_learning_rate", param)
        beta_1 = 1.0 - hand_designed.scalar(theta, "log_one_minus_beta_1", param)
        beta_2 = 1.0 - hand_designed.scalar(theta, "log_one_minus_beta_2", param)
        update = -learning_rate * ops.sign(features.accumulate(state["m"], grad, beta_1))
        return update, {"m": features.accumulate(state["m"], grad, beta_2)}
