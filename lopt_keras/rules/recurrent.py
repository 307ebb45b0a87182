"""The component-wise recurrent rule of Andrychowicz et al. and Maheswaranathan et al."""

import dataclasses

from keras import ops

from lopt_keras import features, networks, validation
from lopt_keras.rules import base

_LOG_SCALE = 10.0


@dataclasses.dataclass(frozen=True)
class Recurrent(base.UpdateRule):
    """A GRU for every parameter, with shared weights: `P <- P + step_mult * w^T h`.

    Reads the gradient alone; all else, momentum and schedule included, is in h.

    Theta: `kernel0 [inputs, 3 hidden_size]`, `recurrent_kernel0`, `bias0` of the first
    GRU layer, as `keras.layers.GRU(reset_after=False)` has them (gates in the order
    update, reset, candidate), those of further layers, and `readout_w [hidden_size, 1]`.

    State bytes per parameter: `4 * hidden_size * hidden_layers` (128 by default).

    Args:
        hidden_size: units of each GRU layer. The paper's analysis has 256.
        hidden_layers: number of GRU layers, each reading the one before.
        step_mult: scale of the step.
        log_sign: whether the GRU reads g as two values, `(log|g| / 10, sign g)` where
            `|g| >= exp(-10)` and `(-1, exp(10) g)` elsewhere, instead of g itself.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Maheswaranathan et al., arXiv 2011.02159, section 2 (GRU, linear readout);
        Andrychowicz et al., arXiv 1606.04474, appendix A (logarithm and sign).
    """

    hidden_size: int = 32
    hidden_layers: int = 1
    step_mult: float = 0.001
    log_sign: bool = False

    def __post_init__(self):
        validation.check_integer("hidden_size", self.hidden_size, low=1, high=4096)
        validation.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)
        validation.check_number("step_mult", self.step_mult)
        validation.check_bool("log_sign", self.log_sign)

    def theta_shapes(self):
        shapes, inputs = {}, 1 + self.log_sign
        for i in range(self.hidden_layers):
            shapes[f"kernel{i}"] = (inputs, 3 * self.hidden_size)
            shapes[f"recurrent_kernel{i}"] = (self.hidden_size, 3 * self.hidden_size)
            shapes[f"bias{i}"] = (3 * self.hidden_size,)
            inputs = self.hidden_size
        return {**shapes, "readout_w": (self.hidden_size, 1)}

    def init_theta(self, seed=0):
        return networks.random_weights(self.theta_shapes(), seed)

    def init_tensor_state(self, theta, param, name):
        particles, *shape = ops.shape(param)
        hidden = ops.zeros((particles, self.hidden_size, *shape), "float32")
        return {f"h{i}": hidden for i in range(self.hidden_layers)}

    def update_tensor(self, theta, state, message, grad, param, signals):
        x = features.flat(grad)[:, None]
        x = log_and_sign(x) if self.log_sign else x
        new = {}
        for i in range(self.hidden_layers):
            h = state[f"h{i}"]
            x = _gru(theta, i, x, ops.reshape(h, (*h.shape[:2], -1)))
            new[f"h{i}"] = ops.reshape(x, ops.shape(h))
        step = self.step_mult * ops.matmul(ops.swapaxes(theta["readout_w"], 1, 2), x)
        return ops.reshape(step, ops.shape(param)), new


def log_and_sign(g):
    """`[P, 1, n]` -> `[P, 2, n]`: magnitude and sign on a logarithmic scale.

    Source: Andrychowicz et al., arXiv 1606.04474, appendix A, with p = 10.
    """
    magnitude = ops.abs(g)
    large = magnitude >= ops.exp(-_LOG_SCALE)
    # The logarithm of 1 where it is not used, so that its gradient is finite.
    logarithm = ops.log(ops.where(large, magnitude, 1.0)) / _LOG_SCALE
    first = ops.where(large, logarithm, -1.0)
    second = ops.where(large, ops.sign(g), ops.exp(_LOG_SCALE) * g)
    return ops.concatenate([first, second], axis=1)


def _gru(theta, layer, x, h):
    """The new hidden state `[P, hidden_size, n]`, from `[P, F, n]` and the old one."""
    kernel = ops.swapaxes(theta[f"kernel{layer}"], 1, 2)
    recurrent = ops.swapaxes(theta[f"recurrent_kernel{layer}"], 1, 2)
    size = h.shape[1]
    from_input = ops.matmul(kernel, x) + theta[f"bias{layer}"][:, :, None]
    gates = from_input[:, : 2 * size] + ops.matmul(recurrent[:, : 2 * size], h)
    update, reset = ops.split(ops.sigmoid(gates), 2, axis=1)
    candidate = from_input[:, 2 * size :] + ops.matmul(recurrent[:, 2 * size :], reset * h)
    return update * h + (1.0 - update) * ops.tanh(candidate)
