"""Adam whose hyperparameters a small network sets, for each tensor in each step."""

import dataclasses
import math
from typing import ClassVar

from keras import ops

from lopt_keras import controller, features, validation
from lopt_keras.rules import base


@dataclasses.dataclass(frozen=True)
class LearnedHyperparameters(base.UpdateRule):
    """Adam with a learned learning rate, betas and epsilon for each tensor and step.

    A `controller.Controller` has four outputs o; each hyperparameter (1 - beta for
    the betas) is its given value times `range ** tanh(o)`. Untrained, this is Adam;
    trained or not, it is an Adam with hyperparameters within these ranges, and never
    worse than the worst of them. The correction of Adam's bias follows the betas that
    were used.

    Theta: `controller_w0`, `controller_b0`, ..., the layers of the controller.

    State bytes per parameter: 8.

    Args:
        hidden_size: units in each hidden layer (ReLU) of the controller.
        hidden_layers: number of hidden layers of the controller.
        learning_rate: positive.
        beta_1, beta_2: in [0, 1).
        epsilon: positive.
        learning_rate_range, epsilon_range, decay_range: at least 1.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Kingma and Ba, arXiv 1412.6980. Features after Metz et al., arXiv 2009.11243;
        the idea as in Wichrowska et al., arXiv 1703.04813, and nn_adam in arXiv
        2203.11860.
    """

    signals: ClassVar[tuple[str, ...]] = controller.SIGNALS

    hidden_size: int = 16
    hidden_layers: int = 2
    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    learning_rate_range: float = 1000.0
    decay_range: float = 10.0
    epsilon_range: float = 1000.0

    def __post_init__(self):
        object.__setattr__(
            self,
            "_controller",
            controller.Controller("controller_", 4, self.hidden_size, self.hidden_layers),
        )
        validation.check_number("learning_rate", self.learning_rate, low_open=True)
        validation.check_number("beta_1", self.beta_1, high=1.0)
        validation.check_number("beta_2", self.beta_2, high=1.0)
        validation.check_number("epsilon", self.epsilon, low_open=True)
        for name in ("learning_rate_range", "decay_range", "epsilon_range"):
            validation.check_number(name, getattr(self, name), low=1.0)

    def theta_shapes(self):
        return self._controller.theta_shapes()

    def init_theta(self, seed=0):
        return self._controller.init_theta(seed)

    def init_tensor_state(self, theta, param, name):
        ones = ops.ones((param.shape[0], *(1,) * (len(param.shape) - 1)), "float32")
        return {
            "m": ops.zeros_like(param),
            "v": ops.zeros_like(param),
            "beta_1_product": ones,
            "beta_2_product": ones,
            **self._controller.init_tensor_state(param),
        }

    def init_shared_state(self, theta):
        return self._controller.init_shared_state(theta["controller_b0"].shape[0])

    def coordinate(self, theta, shared, summaries, signals):
        shared, heard = self._controller.listen(theta, shared, signals)
        return shared, [{"heard": heard}] * len(summaries)

    def update_tensor(self, theta, state, message, grad, param, signals):
        previous = -state["m"] * ops.rsqrt(state["v"] + 1e-14)
        measured = controller.measure(grad, param, previous)
        outputs, controlled = self._controller(theta, state, message["heard"], measured, signals)
        learning_rate, beta_1, beta_2, epsilon = self._hyperparameters(outputs, param)
        m = features.accumulate(state["m"], grad, beta_1)
        v = features.accumulate(state["v"], ops.square(grad), beta_2)
        products = [state["beta_1_product"] * beta_1, state["beta_2_product"] * beta_2]
        correction = ops.sqrt(1.0 - products[1]) / (1.0 - products[0])
        update = -learning_rate * correction * m / (features.safe_sqrt(v) + epsilon)
        products = dict(zip(("beta_1_product", "beta_2_product"), products, strict=True))
        return update, {"m": m, "v": v, **products, **controlled}

    def _hyperparameters(self, outputs, param):
        """Learning rate, betas and epsilon, each shaped to scale `param`."""
        centers_and_ranges = (
            (self.learning_rate, self.learning_rate_range),
            (1.0 - self.beta_1, self.decay_range),
            (1.0 - self.beta_2, self.decay_range),
            (self.epsilon, self.epsilon_range),
        )
        shape = (-1, *(1,) * (len(param.shape) - 1))
        learning_rate, rate_1, rate_2, epsilon = (
            ops.reshape(center * ops.exp(math.log(width) * ops.tanh(outputs[:, i])), shape)
            for i, (center, width) in enumerate(centers_and_ranges)
        )
        beta_1, beta_2 = (1.0 - ops.minimum(rate, 1.0) for rate in (rate_1, rate_2))
        return learning_rate, beta_1, beta_2, epsilon
