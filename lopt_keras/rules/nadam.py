"""Adam with Nesterov momentum as an update rule."""

import dataclasses

from keras import ops

from lopt_keras import features
from lopt_keras.rules import hand_designed

_MOMENTUM_DECAY = 0.96


@dataclasses.dataclass(frozen=True)
class Nadam(hand_designed.Adam):
    """Adam with Nesterov momentum, as `keras.optimizers.Nadam`.

    Theta: that of `Adam`.

    State: that of `Adam`, and the product of all momenta so far, one number.

    Args:
        learning_rate, beta_1, beta_2, epsilon: as `Adam`. The momentum of step t, counted
            from 1, is `beta_1 (1 - 0.96^t / 2)`.

    Reference:
        Dozat, Incorporating Nesterov momentum into Adam, 2015.
    """

    def init_shared_state(self, theta):
        return {"momentum_product": ops.ones_like(theta["log_learning_rate"])}

    def coordinate(self, theta, shared, summaries, signals):
        product = shared["momentum_product"] * _momentum(theta, signals.step)
        following = product * _momentum(theta, signals.step + 1)
        message = {"momentum_product": product, "next_momentum_product": following}
        return {"momentum_product": product}, [message] * len(summaries)

    def update_tensor(self, theta, state, message, grad, param, signals):
        def shaped(values):
            return ops.reshape(values, (-1, *(1,) * (len(param.shape) - 1)))

        learning_rate = hand_designed.scalar(theta, "log_learning_rate", param)
        epsilon = hand_designed.scalar(theta, "log_epsilon", param)
        beta_1 = 1.0 - hand_designed.scalar(theta, "log_one_minus_beta_1", param)
        beta_2 = 1.0 - hand_designed.scalar(theta, "log_one_minus_beta_2", param)
        m = features.accumulate(state["m"], grad, beta_1)
        v = features.accumulate(state["v"], ops.square(grad), beta_2)
        momentum = shaped(_momentum(theta, signals.step))
        next_momentum = shaped(_momentum(theta, signals.step + 1))
        mean = next_momentum * m / (1.0 - shaped(message["next_momentum_product"]))
        mean = mean + (1.0 - momentum) * grad / (1.0 - shaped(message["momentum_product"]))
        count = shaped(ops.cast(signals.step, "float32") + 1.0)
        root = features.safe_sqrt(v / (1.0 - ops.power(beta_2, count)))
        return -learning_rate * mean / (root + epsilon), {"m": m, "v": v}


def _momentum(theta, step):
    """Of the step, which is counted from 0: `[P]`."""
    count = ops.cast(step, "float32") + 1.0
    beta_1 = 1.0 - ops.exp(theta["log_one_minus_beta_1"])
    return beta_1 * (1.0 - 0.5 * ops.power(_MOMENTUM_DECAY, count))
