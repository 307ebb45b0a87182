"""Schedule-free AdamW as an update rule."""

import dataclasses

from keras import ops

from lopt_keras import features, validation
from lopt_keras.rules import hand_designed


@dataclasses.dataclass(frozen=True)
class ScheduleFreeAdamW(hand_designed.Adam):
    """Averages instead of a schedule; defaults as `keras.optimizers.ScheduleFreeAdamW`.

    Steps go to z; x is the mean of all z; gradients are taken at the parameters
    `y = (1 - beta_1) z + beta_1 x`. As with Keras, losses are those at y, also at the end,
    and there is neither warm-up nor weight decay by default, nor any here.

    Keras 3.15 does not compute this under TensorFlow: it recovers the old x from the new z,
    as the value that it keeps of the old one is a reference to the variable.

    Theta: that of `Adam`.

    State: `gap`, which is z - y, and the second moment.

    Args:
        learning_rate, beta_2, epsilon: as `Adam`.
        beta_1: fraction of the mean in y, in (0, 1).

    Reference:
        Defazio et al., arXiv 2405.15682, algorithm 1.
    """

    learning_rate: float = 0.0025
    epsilon: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        validation.check_number("beta_1", self.beta_1, high=1.0, low_open=True)

    def init_tensor_state(self, theta, param, name):
        return {"gap": ops.zeros_like(param), "v": ops.zeros_like(param)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        learning_rate = hand_designed.scalar(theta, "log_learning_rate", param)
        epsilon = hand_designed.scalar(theta, "log_epsilon", param)
        one_minus_beta_1 = hand_designed.scalar(theta, "log_one_minus_beta_1", param)
        beta_2 = 1.0 - hand_designed.scalar(theta, "log_one_minus_beta_2", param)
        count = ops.reshape(ops.cast(signals.step, "float32") + 1.0, learning_rate.shape)
        v = features.accumulate(state["v"], ops.square(grad), beta_2)
        root = features.safe_sqrt(v / (1.0 - ops.power(beta_2, count)))
        # All points as seen from the old y, of which none is large then.
        z = state["gap"] - learning_rate * grad / (root + epsilon)
        old_x = -one_minus_beta_1 / (1.0 - one_minus_beta_1) * state["gap"]
        x = old_x + (z - old_x) / count
        y = one_minus_beta_1 * z + (1.0 - one_minus_beta_1) * x
        return y, {"gap": z - y, "v": v}
