"""The factored MLP of Metz et al. 2022 ("small_fc_lopt")."""

import dataclasses

from keras import ops

from lopt_keras import features, validation
from lopt_keras.rules import mlp

_DECAYS = ("momentum_decays", "rms_decays", "factored_decays")
_REFERENCE_NAMES = {
    "momentum_decays": "momentum_decays",
    "rms_decays": "rms_decays",
    "factored_decays": "adafactor_decays",
}


@dataclasses.dataclass(frozen=True)
class FactoredMLP(mlp.MLP):
    """A small per-parameter MLP that also reads factored second moments.

    In the order of the rows of `w0`: g, P, m, rms, `m rsqrt(rms)`, `rsqrt(rms)`,
    g preconditioned by the factored second moment, its row and column
    accumulators and their rsqrt, m preconditioned likewise, each second-moment
    normalised over its tensor; then the time embedding.

    Theta: the layers' weights as in `MLP`, and `momentum_decays`, `rms_decays`,
    `factored_decays`: offsets of the decays from their initial values, see
    `features.decays_from_offsets`.

    State bytes per parameter: 4 for each of `momentum_decays` and `rms_decays`
    (16 by default) and, for tensors of rank 0 and 1, `factored_decays`.

    Args:
        hidden_size: units in each hidden layer (ReLU).
        hidden_layers: number of hidden layers.
        step_mult: scale of the step.
        exp_mult: scale of the output m.
        momentum_decays: initial decays of the accumulators of g, each in [0, 1).
        rms_decays: initial decays of the accumulators of g^2: one, or as many as
            `momentum_decays`.
        factored_decays: initial decays of the factored second moments, as many
            as `momentum_decays`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Metz et al., "Practical tradeoffs between memory, compute, and performance
        in learned optimizers", arXiv 2203.11860, section 3 and appendix.
    """

    hidden_size: int = 8
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    rms_decays: tuple[float, ...] = (0.999,)
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)

    def __post_init__(self):
        super().__post_init__()
        validation.check_decay_counts(self)

    def num_tensor_features(self):
        momenta, rms = len(self.momentum_decays), len(self.rms_decays)
        return 2 + momenta + rms + momenta + rms + 6 * momenta

    def theta_shapes(self):
        decays = {name: (len(getattr(self, name)),) for name in _DECAYS}
        return {**super().theta_shapes(), **decays}

    def from_reference(self, arrays):
        arrays = dict(arrays)
        published = dict(_REFERENCE_NAMES)
        for name in super().theta_shapes():
            published[name] = f"nn/~/{name}"
        theta = {ours: arrays.pop(key) for ours, key in published.items() if key in arrays}
        return self.check_theta({**theta, **arrays})

    def init_tensor_state(self, theta, param, name):
        particles, *shape = ops.shape(param)
        return {
            "m": ops.zeros((particles, len(self.momentum_decays), *shape), "float32"),
            "rms": ops.zeros((particles, len(self.rms_decays), *shape), "float32"),
            **features.init_factored_moments(param, len(self.factored_decays)),
        }

    def update_tensor(self, theta, state, message, grad, param, signals):
        decays = self._decays(theta, rank=len(param.shape) - 1)
        g = grad[:, None]
        moments = features.factored_moments(state, grad, decays["factored_decays"])
        row, col = moments.row, moments.col
        accumulated = (state["m"], state["rms"], g, *list(decays.values())[:2])
        m, rms = features.accumulate_both(*accumulated)
        arrays = [*accumulated, param[:, None], ops.rsqrt(rms + 1e-6)]
        arrays += [*moments.grad_factors, *moments.momentum_factors]
        arrays += [row, col, ops.rsqrt(row + 1e-8), ops.rsqrt(col + 1e-8)]
        step = self.step(theta, _inputs, arrays, param, signals)
        return step, {"m": m, "rms": rms, **moments.state}

    def _decays(self, theta, rank):
        decays = {}
        for name in _DECAYS:
            value = features.decays_from_offsets(getattr(self, name), theta[name])
            if name != "momentum_decays":
                value = ops.clip(value, 0.0, 1.0)
            decays[name] = features.broadcast_over(value, rank)
        return decays


def _inputs(m, rms, g, momentum_decay, rms_decay, p, rsqrt, *of_factored):
    m, rms = features.accumulate_both(m, rms, g, momentum_decay, rms_decay)
    factors, rows_and_columns = of_factored[:4], of_factored[4:]
    inputs = [g, p, m, rms, m * rsqrt, rsqrt, g * (factors[0] * factors[1])]
    return [*inputs, *rows_and_columns, m * (factors[2] * factors[3])]
