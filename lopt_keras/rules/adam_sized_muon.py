"""Muon's direction at Adam's size, as an update rule."""

import dataclasses
import math
from typing import ClassVar

from keras import ops

from lopt_keras import features
from lopt_keras.orthogonalization import orthogonalized
from lopt_keras.rules import hand_designed

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class AdamSizedMuon(hand_designed.Adam):
    """Adam whose step of a matrix has the direction of the orthogonalised momentum.

    The step of a tensor of rank 2 and more, as the matrix of all its axes but the last by the
    last, is Nesterov's momentum `beta_1 m + (1 - beta_1) g` after five Newton-Schulz
    iterations, scaled to the root mean square of Adam's step. Other tensors, and those with
    "embedding" in their names, get Adam's step.

    Theta: that of `Adam`.

    Args:
        learning_rate, beta_1, beta_2, epsilon: as `Adam`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Jordan et al., https://kellerjordan.github.io/posts/muon. Its scale by a second
        moment: AdaMuon, Si et al., arXiv 2507.11005, which scales entry by entry.
    """

    permutes_with_axes: ClassVar[bool] = False
    flattens: ClassVar[bool] = True

    learning_rate: float = 0.01
    beta_2: float = 0.95

    def init_tensor_state(self, theta, param, name):
        state = super().init_tensor_state(theta, param, name)
        if len(param.shape) < 3 or "embedding" in name.lower():
            return state
        # A name of its own tells `update_tensor` that the tensor is whitened.
        return {"momentum": state["m"], "v": state["v"]}

    def update_tensor(self, theta, state, message, grad, param, signals):
        if "m" in state:
            return super().update_tensor(theta, state, message, grad, param, signals)
        adam = {"m": state["momentum"], "v": state["v"]}
        update, adam = super().update_tensor(theta, adam, message, grad, param, signals)
        decay = 1.0 - hand_designed.scalar(theta, "log_one_minus_beta_1", param)
        shape = ops.shape(param)
        matrix = ops.reshape(
            features.accumulate(adam["m"], grad, decay), (shape[0], math.prod(shape[1:-1]), -1)
        )
        step = ops.reshape(orthogonalized(matrix), shape)
        size = features.norm(update) / (features.norm(step) + _EPSILON)
        update = -features.broadcast_over(size, len(param.shape) - 1) * step
        return update, {"momentum": adam["m"], "v": adam["v"]}
