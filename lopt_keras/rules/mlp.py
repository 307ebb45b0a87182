"""The per-parameter MLP of Metz et al. 2019."""

import dataclasses

from keras import ops

from lopt_keras import features, networks, validation
from lopt_keras.rules import base


@dataclasses.dataclass(frozen=True)
class MLP(base.UpdateRule):
    """A small MLP, the same for every parameter, on gradients and momenta.

    Reads g, P and momenta of g at several decays, each second-moment normalised
    over its tensor, and a time embedding. Its outputs d, m give the step
    `-step_mult * d * exp(exp_mult * m)`.

    Theta: `w0 [inputs, hidden_size]`, `b0`, ..., the weights of the layers. The
    rows of `w0` are in the order above.

    Args:
        hidden_size: units in each hidden layer (ReLU).
        hidden_layers: number of hidden layers.
        step_mult: scale of the step.
        exp_mult: scale of m.
        momentum_decays: decays of the accumulators of g, each in [0, 1).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Metz et al., "Understanding and correcting pathologies in the training
        of learned optimizers", arXiv 1810.10180, section 3 and appendix.
    """

    hidden_size: int = 32
    hidden_layers: int = 2
    step_mult: float = 0.001
    exp_mult: float = 0.001
    momentum_decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)

    def __post_init__(self):
        validation.check_integer("hidden_size", self.hidden_size, low=1, high=4096)
        validation.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)
        validation.check_number("step_mult", self.step_mult)
        validation.check_number("exp_mult", self.exp_mult)
        validation.check_decay_field(self, "momentum_decays")

    def num_tensor_features(self):
        """Inputs of the network besides the time embedding."""
        return 2 + len(self.momentum_decays)

    def theta_shapes(self):
        inputs = self.num_tensor_features() + len(features.TIMESCALES)
        return networks.mlp_shapes([inputs, *[self.hidden_size] * self.hidden_layers, 2])

    def init_theta(self, seed=0):
        return networks.random_weights(self.theta_shapes(), seed)

    def from_reference(self, arrays):
        arrays = dict(arrays)
        theta = {}
        for i in range(self.hidden_layers + 1):
            for ours, published in ((f"w{i}", "w"), (f"b{i}", "b")):
                key = f"mlp/~/linear_{i}/{published}"
                if key in arrays:
                    theta[ours] = arrays.pop(key)
        return self.check_theta({**theta, **arrays})

    def init_tensor_state(self, theta, param, name):
        particles, *shape = ops.shape(param)
        return {"m": ops.zeros((particles, len(self.momentum_decays), *shape), "float32")}

    def update_tensor(self, theta, state, message, grad, param, signals):
        rank = len(param.shape) - 1
        decays = features.broadcast_over(features.constant([self.momentum_decays]), rank)

        def inputs(m, g, p, decay):
            return [g, p, features.accumulate(m, g, decay)]

        g = grad[:, None]
        arrays = [state["m"], g, param[:, None], decays]
        step = self.step(theta, inputs, arrays, param, signals)
        return step, {"m": features.accumulate(state["m"], g, decays)}

    def step(self, theta, inputs, arrays, param, signals):
        """The step of one tensor, from its features.

        Args:
            theta: dict of `[P, ...]`.
            inputs, arrays: as for `networks.mlp_per_parameter`.
            param: `[P, *shape]`.
            signals: `Signals`.

        Returns:
            `[P, *shape]`.
        """
        context = features.time_embedding(signals.step)
        outputs = networks.mlp_per_parameter(theta, inputs, arrays, context, self.hidden_layers)
        step = networks.scaled(-self.step_mult * outputs[:, 0], self.exp_mult * outputs[:, 1])
        return ops.reshape(step, ops.shape(param))
