"""Muon as an update rule."""

import dataclasses

import numpy as np
from keras import ops

from lopt_keras import validation
from lopt_keras.orthogonalization import orthogonalized
from lopt_keras.rules import hand_designed

_ROOT_MEAN_SQUARE = 0.2
_ADAMW = hand_designed.AdamW()


@dataclasses.dataclass(frozen=True)
class Muon(hand_designed.HandDesigned):
    """Orthogonalised momentum for matrices and AdamW for the rest, as `keras.optimizers.Muon`.

    The step of a matrix is Nesterov's momentum after five Newton-Schulz iterations, times
    `0.2 sqrt(max(rows, columns))`, so that its entries are as large as Adam's. Tensors of
    another rank than 2, and those with "embedding" in their names, get AdamW.

    Theta: `log_learning_rate`, `log_one_minus_momentum`, `log_weight_decay`,
    `log_one_minus_adam_beta_1`, `log_one_minus_adam_beta_2`, `log_adam_weight_decay`,
    `log_epsilon`, scalars.

    Args:
        learning_rate: positive, of Muon and AdamW alike.
        momentum: in [0, 1).
        weight_decay: positive, of the matrices.
        adam_beta_1, adam_beta_2, adam_weight_decay, epsilon: of `AdamW`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Jordan et al., https://kellerjordan.github.io/posts/muon; its scale is that of Liu et
        al., arXiv 2502.16982, section 2.2.
    """

    learning_rate: float = 0.001
    momentum: float = 0.95
    weight_decay: float = 0.004
    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.999
    adam_weight_decay: float = 0.004
    epsilon: float = 1e-7

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "adam_weight_decay", "epsilon"):
            validation.check_number(name, getattr(self, name), low_open=True)
        for name in ("momentum", "adam_beta_1", "adam_beta_2"):
            validation.check_number(name, getattr(self, name), high=1.0)

    def _hyperparameters(self):
        positive = ("learning_rate", "weight_decay", "adam_weight_decay", "epsilon")
        decays = ("momentum", "adam_beta_1", "adam_beta_2")
        return {f"log_{name}": np.log(getattr(self, name)) for name in positive} | {
            f"log_one_minus_{name}": np.log1p(-getattr(self, name)) for name in decays
        }

    def init_tensor_state(self, theta, param, name):
        if len(param.shape) != 3 or "embedding" in name.lower():
            return _ADAMW.init_tensor_state(theta, param, name)
        return {"m": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        if "v" in state:
            theta = _of_adamw(theta)
            return _ADAMW.update_tensor(theta, state, message, grad, param, signals)
        learning_rate = hand_designed.scalar(theta, "log_learning_rate", param)
        weight_decay = hand_designed.scalar(theta, "log_weight_decay", param)
        momentum = 1.0 - hand_designed.scalar(theta, "log_one_minus_momentum", param)
        m = momentum * state["m"] + grad
        largest = ops.cast(ops.maximum(*ops.shape(param)[1:]), "float32")
        step = orthogonalized(grad + momentum * m) * (_ROOT_MEAN_SQUARE * ops.sqrt(largest))
        return -learning_rate * (step + weight_decay * param), {"m": m}


def _of_adamw(theta):
    """AdamW's theta, from Muon's."""
    own = {name.replace("adam_", ""): value for name, value in theta.items() if "adam_" in name}
    return {name: theta[name] for name in ("log_learning_rate", "log_epsilon")} | own
