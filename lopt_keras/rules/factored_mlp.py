"""The factored MLP of Metz et al. 2022 ("small_fc_lopt")."""

import dataclasses

from keras import ops

from lopt_keras import features
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
        self._check_decay_field("rms_decays")
        self._check_decay_field("factored_decays")
        momenta = len(self.momentum_decays)
        if len(self.rms_decays) not in (1, momenta):
            raise ValueError(
                f"`rms_decays` must hold 1 or {momenta} decays (as many as `momentum_decays`). "
                f"Received: rms_decays={self.rms_decays}"
            )
        if len(self.factored_decays) != momenta:
            raise ValueError(
                f"`factored_decays` must hold {momenta} decays (as many as `momentum_decays`). "
                f"Received: factored_decays={self.factored_decays}"
            )

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

    def init_tensor_state(self, theta, param):
        particles, *shape = ops.shape(param)
        axes = features.factored_axes(param.shape[1:])

        def zeros(decays, shape):
            return ops.zeros((particles, len(decays), *shape), "float32")

        state = {"m": zeros(self.momentum_decays, shape), "rms": zeros(self.rms_decays, shape)}
        if axes is None:
            return {**state, "v": zeros(self.factored_decays, shape)}
        for name, axis in zip(("col", "row"), axes, strict=True):
            reduced = [1 if i == axis else size for i, size in enumerate(shape)]
            state[name] = zeros(self.factored_decays, reduced)
        return state

    def update_tensor(self, theta, state, grad, param, signals):
        axes = features.factored_axes(param.shape[1:])
        decays = self._decays(theta, rank=len(param.shape) - 1)
        g, p = grad[:, None], param[:, None]
        m = features.accumulate(state["m"], g, decays["momentum_decays"])
        rms = features.accumulate(state["rms"], ops.square(g), decays["rms_decays"])
        second_moment = _diagonal if axes is None else _factored
        v_state, factor, m_factor, row, col = second_moment(
            state, ops.square(g) + 1e-30, decays["factored_decays"], axes
        )
        rsqrt_rms = ops.rsqrt(rms + 1e-6)
        inputs = [g, p, m, rms, m * rsqrt_rms, rsqrt_rms, g * factor, row, col]
        inputs += [ops.rsqrt(row + 1e-8), ops.rsqrt(col + 1e-8), m * m_factor]
        return self.step(theta, inputs, param, signals), {"m": m, "rms": rms, **v_state}

    def _decays(self, theta, rank):
        decays = {}
        for name in _DECAYS:
            value = features.decays_from_offsets(getattr(self, name), theta[name])
            if name != "momentum_decays":
                value = ops.clip(value, 0.0, 1.0)
            decays[name] = features.broadcast_over(value, rank)
        return decays


def _factored(state, squared, decay, axes):
    """Second moments of a tensor of rank 2 or more, kept as rows and columns.

    Returns:
        The new state, the factors of g and of m, and the row and column features.
    """
    d1, d0 = (axis + 2 for axis in axes)
    row = features.accumulate(state["row"], ops.mean(squared, axis=d0, keepdims=True), decay)
    col = features.accumulate(state["col"], ops.mean(squared, axis=d1, keepdims=True), decay)
    row_mean = ops.mean(row, axis=d1, keepdims=True)
    factor = features.safe_rsqrt(row / (row_mean + 1e-9)) * features.safe_rsqrt(col)
    return {"row": row, "col": col}, factor, factor, row, col


def _diagonal(state, squared, decay, axes):
    """The same for rank 0 and 1, entry by entry: row and column are both v."""
    v = features.accumulate(state["v"], squared, decay)
    return {"v": v}, features.safe_rsqrt(v + 1e-9), ops.rsqrt(v + 1e-6), v, v
