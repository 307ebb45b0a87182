"""The per-parameter MLP of Metz et al. 2019."""

import dataclasses
import itertools

import numpy as np
from keras import ops

from lopt_keras import features
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
        base.check_integer("hidden_size", self.hidden_size, low=1, high=4096)
        base.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)
        base.check_number("step_mult", self.step_mult)
        base.check_number("exp_mult", self.exp_mult)
        self._check_decay_field("momentum_decays")

    def _check_decay_field(self, name):
        object.__setattr__(self, name, base.check_decays(name, getattr(self, name)))

    def num_tensor_features(self):
        """Inputs of the network besides the time embedding."""
        return 2 + len(self.momentum_decays)

    def theta_shapes(self):
        inputs = self.num_tensor_features() + len(features.TIMESCALES)
        sizes = [inputs, *[self.hidden_size] * self.hidden_layers, 2]
        shapes = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            shapes[f"w{i}"] = (fan_in, fan_out)
            shapes[f"b{i}"] = (fan_out,)
        return shapes

    def init_theta(self, seed=0):
        """Weights normal with standard deviation `1 / sqrt(fan_in)`, all else zero."""
        rng = np.random.default_rng(seed)
        theta = {}
        for name, shape in self.theta_shapes().items():
            scale = shape[0] ** -0.5 if len(shape) == 2 else 0.0
            theta[name] = (scale * rng.standard_normal(shape)).astype("float32")
        return theta

    def from_reference(self, arrays):
        arrays = dict(arrays)
        theta = {}
        for i in range(self.hidden_layers + 1):
            for ours, published in ((f"w{i}", "w"), (f"b{i}", "b")):
                key = f"mlp/~/linear_{i}/{published}"
                if key in arrays:
                    theta[ours] = arrays.pop(key)
        return self.check_theta({**theta, **arrays})

    def init_tensor_state(self, theta, param):
        particles, *shape = ops.shape(param)
        return {"m": ops.zeros((particles, len(self.momentum_decays), *shape), "float32")}

    def update_tensor(self, theta, state, grad, param, signals):
        rank = len(param.shape) - 1
        decays = np.asarray([self.momentum_decays], "float32")
        m = features.accumulate(state["m"], grad[:, None], features.broadcast_over(decays, rank))
        inputs = [grad[:, None], param[:, None], m]
        return self.step(theta, inputs, param, signals), {"m": m}

    def step(self, theta, inputs, param, signals):
        """The step of one tensor, from its features.

        Args:
            theta: dict of `[P, ...]`.
            inputs: list of `[P, F_i, *shape_i]` in the order of the rows of
                `w0`, where each `shape_i` broadcasts to the tensor's shape.
            param: `[P, *shape]`.
            signals: `Signals`.

        Returns:
            `[P, *shape]`.
        """
        hidden = _first_layer(theta, inputs, features.time_embedding(signals.step))
        for i in range(1, self.hidden_layers + 1):
            hidden = ops.matmul(ops.swapaxes(theta[f"w{i}"], 1, 2), ops.relu(hidden))
            hidden = hidden + theta[f"b{i}"][:, :, None]
        direction, magnitude = hidden[:, 0], hidden[:, 1]
        step = -self.step_mult * direction * ops.exp(self.exp_mult * magnitude)
        return ops.reshape(step, ops.shape(param))


def _first_layer(theta, inputs, time):
    """Pre-activations `[P, hidden_size, n]` of the first layer.

    Exact to rounding, but cheaper than concatenating normalised features: inputs
    of one shape share one matrix product, those that are constant along an axis
    are broadcast after theirs, the normalisation scales the weights instead of
    the features, and the time embedding is a bias.
    """
    groups, row = {}, 0
    for x in inputs:
        groups.setdefault(tuple(x.shape[2:]), []).append((x, row))
        row += x.shape[1]
    weights = theta["w0"]
    total = None
    for members in groups.values():
        x = _concatenate([x for x, _ in members])
        w = _concatenate([weights[:, i : i + x.shape[1]] for x, i in members])
        product = _normalised_product(w, x)
        total = product if total is None else total + product
    bias = theta["b0"] + ops.squeeze(ops.matmul(time[:, None], weights[:, row:]), 1)
    particles, hidden_size = bias.shape
    return ops.reshape(total, (particles, hidden_size, -1)) + bias[:, :, None]


def _concatenate(arrays):
    return arrays[0] if len(arrays) == 1 else ops.concatenate(arrays, axis=1)


def _normalised_product(w, x):
    """`w [P, F, H]` applied to `x [P, F, *shape]`, each feature second-moment normalised."""
    particles, count, hidden_size = w.shape
    flat = ops.reshape(x, (particles, count, -1))
    second_moment = ops.mean(ops.square(flat), axis=2, keepdims=True)
    w = w * ops.rsqrt(1e-5 + second_moment)
    product = ops.matmul(ops.swapaxes(w, 1, 2), flat)
    return ops.reshape(product, (particles, hidden_size, *ops.shape(x)[2:]))
