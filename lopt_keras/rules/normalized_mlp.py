"""The normalised MLP of Celo2, whose steps all have the same size."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from keras import ops

from lopt_keras import features, networks, orthogonalization, reductions, validation
from lopt_keras.rules import hand_designed, mlp

_EPSILON = 1e-9
_GRAD_BOUND, _GRAD_FEATURE_BOUND = 1000.0, 0.1
_OUTPUTS = 3
_OTHER_DIRECTION = 2
_SWITCHES = ("orthogonalize", "flatten_filters", "adam_fallback", "noise_scaled")
STARTS = ("random", "momentum", "adam", "muon")
"""What the untrained directions may be."""
# With the weight decay of LearnedOptimizer, this is AdamW.
_FALLBACK = hand_designed.Adam(learning_rate=1.0, beta_1=0.9, beta_2=0.95, epsilon=1e-8)


@dataclasses.dataclass(frozen=True)
class NormalizedMLP(mlp.MLP):
    """A small per-parameter MLP whose output is normalised: it learns directions.

    In the order of the rows of `w0`: g, g clipped at 0.1, P, m, rms, `m rsqrt(rms)`,
    `rsqrt(rms)`, g preconditioned by the factored second moment, `g rsqrt(rms)`, and
    for rank 2 and more the row and column accumulators, their rsqrt, and m
    preconditioned likewise, each second-moment normalised over the last two axes.
    The first output, the direction, is optionally orthogonalised, then normalised to
    a root mean square of 1 over the last two axes and multiplied by `step_mult`,
    which is a learning rate: `Scheduled` learns one. Where others are orthogonalised, the
    third output is the direction of tensors that are not.

    Theta: the layers' weights, as in `MLP`.

    State bytes per parameter: 4 for each of `momentum_decays` and `rms_decays` (16 by
    default), and 8 for tensors that Adam takes.

    Args:
        hidden_size: units in each hidden layer (ReLU).
        hidden_layers: number of hidden layers.
        step_mult: root mean square of the step.
        exp_mult: scale of the second output m, which multiplies the direction by
            `exp(exp_mult * m)` before it is normalised.
        momentum_decays: decays of the accumulators of g, each in [0, 1).
        rms_decays: decays of the accumulators of g^2: one, or as many as
            `momentum_decays`.
        factored_decays: decays of the factored second moments, as many as
            `momentum_decays`.
        orthogonalize: whether five Newton-Schulz iterations bring the singular values
            of the direction, as a matrix of its last two axes, towards 1.
        flatten_filters: whether tensors of rank 3 and more are taken as one matrix,
            all axes but the last by the last, as Muon takes convolutions. Otherwise
            each place of a filter's window is a matrix of its own, as in Celo2.
        start: the untrained direction: "random"; "momentum", the first of the
            accumulators of g; "adam", `m rsqrt(rms)` of the first ones; or "muon", the
            first if it is orthogonalised, and the second if it is not.
        adam_fallback: whether tensors of rank 0 and 1, and embeddings (told by
            "embedding" in their name), take steps of Adam (decays 0.9 and 0.95) with
            the learning rate `step_mult` instead.
        noise_scaled: whether steps shrink where gradients are noise: their root mean square
            is then `step_mult` times that of `m rsqrt(rms)` of the first decays, at most 1.
            That is about 1 where gradients agree, and 0.23 where they have no mean at all
            (the decay of m being 0.9).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Moudgil et al., "Celo2: towards learned optimization free lunch", arXiv
        2602.19142. Newton-Schulz: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon.
    """

    permutes_with_axes: ClassVar[bool] = False

    hidden_size: int = 8
    exp_mult: float = 0.0
    momentum_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    rms_decays: tuple[float, ...] = (0.95,)
    factored_decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    orthogonalize: bool = True
    flatten_filters: bool = False
    start: str = "random"
    adam_fallback: bool = True
    noise_scaled: bool = False

    def __post_init__(self):
        super().__post_init__()
        validation.check_decay_counts(self)
        for name in _SWITCHES:
            validation.check_bool(name, getattr(self, name))
        if self.start not in STARTS:
            raise ValueError(f"`start` must be one of {STARTS}. Received: start={self.start!r}")
        if self.hidden_size < 2 * len(self._passed_on()):
            raise ValueError(
                f"`hidden_size` must be at least {2 * len(self._passed_on())} with "
                f"start={self.start!r}. Received: hidden_size={self.hidden_size}"
            )

    @property
    def flattens(self):
        return self.flatten_filters

    def theta_shapes(self):
        momenta, rms = len(self.momentum_decays), len(self.rms_decays)
        inputs = 3 + momenta + rms + momenta + rms + momenta + rms + 5 * momenta
        return networks.mlp_shapes([inputs, *[self.hidden_size] * self.hidden_layers, _OUTPUTS])

    def init_theta(self, seed=0):
        theta = super().init_theta(seed)
        for unit, (output, row) in enumerate(self._passed_on().items()):
            _pass_on(theta, row, output, 2 * unit, self.hidden_layers)
        return theta

    def _passed_on(self):
        """Which row of `w0` each output is at the start: dict."""
        momentum = 3
        adam = momentum + len(self.momentum_decays) + len(self.rms_decays)
        return {
            "random": {},
            "momentum": {0: momentum},
            "adam": {0: adam},
            "muon": {0: momentum, _OTHER_DIRECTION: adam},
        }[self.start]

    def from_reference(self, arrays):
        arrays = {name.removeprefix("ff_mod_stack/~/"): value for name, value in arrays.items()}
        groups = sorted(
            (name for name in arrays if name.startswith("w0__")),
            key=lambda name: int(name.removeprefix("w0__")),
        )
        first = [arrays.pop(name) for name in groups]
        return self.check_theta({**arrays, **({"w0": np.concatenate(first)} if first else {})})

    def init_tensor_state(self, theta, param, name):
        particles, *shape = ops.shape(param)
        if self.adam_fallback and (len(shape) < 2 or "embedding" in name.lower()):
            return _FALLBACK.init_tensor_state(theta, param, name)
        moments = features.init_factored_moments(self._as_matrix(param), len(self.factored_decays))
        return {
            "m": ops.zeros((particles, len(self.momentum_decays), *shape), "float32"),
            "rms": ops.zeros((particles, len(self.rms_decays), *shape), "float32"),
            **self._as_filters(moments, shape),
        }

    def update_tensor(self, theta, state, message, grad, param, signals):
        if "rms" not in state:
            return self._fallback_update(state, message, grad, param, signals)
        shape = ops.shape(param)
        grad, param = self._as_matrix(grad), self._as_matrix(param)
        state = {name: self._as_matrix(x, leading=2) for name, x in state.items()}
        rank = len(param.shape) - 1
        grad = ops.clip(grad, -_GRAD_BOUND, _GRAD_BOUND)
        g = grad[:, None]

        def decays(values):
            return features.broadcast_over(features.constant([values]), rank)

        moments = features.factored_moments(state, grad, decays(self.factored_decays))
        given = (decays(self.momentum_decays), decays(self.rms_decays))
        accumulated = (state["m"], state["rms"], g, *given)
        m, rms = features.accumulate_both(*accumulated)
        arrays = [*accumulated, param[:, None], ops.rsqrt(rms + 1e-8), *moments.grad_factors]
        if rank >= 2:
            row, col = moments.row, moments.col
            arrays += [row, col, ops.rsqrt(row + 1e-8), ops.rsqrt(col + 1e-8)]
        outputs = networks.mlp_per_parameter(
            theta, _inputs, arrays, None, self.hidden_layers, epsilon=_EPSILON, axes=2
        )
        orthogonalized = self.orthogonalize and rank >= 2
        direction = _OTHER_DIRECTION if self.orthogonalize and not orthogonalized else 0
        step = networks.scaled(outputs[:, direction], self.exp_mult * outputs[:, 1])
        step = _normalised(ops.reshape(step, ops.shape(param)), orthogonalized)
        if self.noise_scaled:
            step = step * _agreement(m[:, 0], rms[:, 0])
        step = ops.reshape(step, shape)
        state = self._as_filters({"m": m, "rms": rms, **moments.state}, shape[1:])
        return -self.step_mult * step, state

    def _as_matrix(self, x, leading=1):
        """`[..., *shape]`, the filters of a convolution as one matrix if so asked."""
        if not self.flatten_filters or len(x.shape) <= leading + 2:
            return x
        shape = ops.shape(x)
        rows = math.prod(shape[leading:-1])
        return ops.reshape(x, (*shape[:leading], rows, shape[-1]))

    def _as_filters(self, state, shape):
        """State of matrices, `[P, F, rows or 1, columns or 1]`, on the axes of the tensor."""
        if not self.flatten_filters or len(shape) <= 2:
            return state

        def restored(x):
            rows = shape[:-1] if x.shape[2] == math.prod(shape[:-1]) else (1,) * len(shape[:-1])
            return ops.reshape(x, (*x.shape[:2], *rows, x.shape[3]))

        return {name: restored(x) for name, x in state.items()}

    def _fallback_update(self, state, message, grad, param, signals):
        particles = param.shape[0]
        theta = {
            name: ops.full((particles,), value, "float32")
            for name, value in _FALLBACK.init_theta().items()
        }
        update, state = _FALLBACK.update_tensor(theta, state, message, grad, param, signals)
        return self.step_mult * update, state


def _normalised(step, orthogonalize):
    """`[P, *shape]` with a root mean square of 1 over the last two axes."""
    step = orthogonalization.orthogonalized(step) if orthogonalize else step
    return step * features.second_moment_scale(step, _EPSILON, _last_axes(step))


def _agreement(m, rms):
    """The root mean square of `m rsqrt(rms)` over the last two axes, at most 1."""
    ratio = m * ops.rsqrt(rms + 1e-12)
    mean = reductions.mean(ops.square(ratio), _last_axes(m))
    return ops.sqrt(ops.minimum(mean, 1.0) + 1e-12)


def _last_axes(x):
    """The last two axes of the tensor `[P, *shape]`, or as many as it has."""
    rank = len(x.shape) - 1
    return tuple(range(max(1, rank - 1), rank + 1))


def _inputs(m, rms, g, momentum_decay, rms_decay, p, rsqrt, *of_matrices):
    m, rms = features.accumulate_both(m, rms, g, momentum_decay, rms_decay)
    clipped = ops.clip(g, -_GRAD_FEATURE_BOUND, _GRAD_FEATURE_BOUND)
    factor = of_matrices[0] * of_matrices[1]
    inputs = [g, clipped, p, m, rms, m * rsqrt, rsqrt, g * factor, g * rsqrt]
    if len(of_matrices) > 2:
        inputs += [*of_matrices[2:], m * factor]
    return inputs


def _pass_on(theta, row, output, unit, hidden_layers):
    """Sets two units of each layer, from `unit`, so that an output is input `row`."""
    both = slice(unit, unit + 2)
    for layer in range(hidden_layers + 1):
        weights = theta[f"w{layer}"]
        if layer == 0:
            weights[:, both] = 0.0
            weights[row, both] = (1.0, -1.0)
        elif layer < hidden_layers:
            weights[:, both] = 0.0
            weights[both, both] = np.eye(2)
        else:
            weights[:, output] = 0.0
            weights[both, output] = (1.0, -1.0)
