"""Orthogonalised momentum in relative steps, mixed and scaled by a learned network."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops

from lopt_keras import controller, features, networks, reductions, tiling, validation
from lopt_keras.orthogonalization import orthogonalized_wide
from lopt_keras.rules import base
from lopt_keras.rules.base import State
from lopt_keras.signals import Signals
from lopt_keras.types import Array, Arrays, Shape, Shapes, Tensor, Tensors, Theta

_OUTPUTS = ("factor", "mix", "lookahead", "decay", "window")
_TENSOR_FEATURES = 20
_SQUARE_DECAYS = (0.9, 0.99, 0.999)
_ALIGNMENT_DECAY = 0.9
_GLOBALS = {"momentum": 0.9, "second_decay": 0.99}
_GLOBAL_MULT, _LOOKAHEAD, _LOOKAHEAD_MULT, _WINDOW_MULT = 3.0, 0.1, 1.5, 1.5
_FASTEST = 0.99  # What a decay leaves of an accumulator is more than nothing.
_WEIGHT_DECAY = 0.1
_TINY = 1e-20


@dataclasses.dataclass(frozen=True)
class DirectionMixture(base.UpdateRule):
    """Muon's direction at Adam's size in relative steps, averaged, and steered by a network.

    For each tensor, with m and v the accumulators of g and of g^2:

    1. Adam's direction is `d = m rsqrt(v / (1 - b^(t+1)))`, b the decay of v, scaled down to a
       root mean square of at most 1. The bias of m stays: it makes the first steps smaller.
    2. A matrix is cut into tiles (`lopt_keras.tiling`). In each, Muon's direction is the
       orthogonalised `(1 - c) m + c g`, as large as d is in that tile.
    3. The direction is Muon's, plus a learned fraction of the difference between Adam's and
       Muon's. Vectors, scalars and embeddings have Adam's direction.
    4. The step is the direction times the tensor's size, its root mean square between
       `min_parameter_scale` and `max_parameter_scale`; times `step_size`; times a schedule,
       `rsqrt(1 + t / decay_steps)`, and where the planned steps T are known
       `1 - anneal t / T`; times a learned factor between 1/10 and 10.
    5. A learned fraction of the parameter, at most a tenth of the step's, is taken away.

    The parameters themselves jitter. A user should keep their running average, in which the
    newest have the weight `w / (t + w)`. So `averages` is true. w is `average_window` times a
    learned factor.

    One small MLP for all tensors reads time, horizon, losses and statistics of each tensor.
    Its outputs start at zero. So the untrained rule is a hand-designed optimizer.

    Theta: `w0`, `b0`, ... of that MLP, and `momentum` and `second_decay`, scalars that move
    the decays of m and v from 0.9 and 0.99.

    State bytes per parameter: 8, and what tiles need to be full. The average takes 4 more.

    Args:
        step_size: of all tensors, relative to their size.
        min_parameter_scale, max_parameter_scale: bounds of a tensor's size, so that what
            starts at zero moves, and what is large does not leap.
        vector_step_size, vector_max_scale: the same for a model without any matrix. Such a
            model is no network, and the size of its tensors says little about how far
            they have to move.
        decay_steps: after as many steps the schedule is at 71 %.
        anneal: in [0, 1], how far steps fall by the end of a known horizon.
        average_window: w.
        tile_rows, tile_columns: of the largest tiles, powers of two.
        hidden_size, hidden_layers: of the MLP.
        exp_mult: logarithm of the largest learned factor.
        trust: multiplies what was learned, the outputs of the MLP before `tanh` and the two
            scalars. 1 is as meta-trained, 0 the untrained rule.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Orthogonalised momentum: Jordan et al., https://kellerjordan.github.io/posts/muon.
        Relative steps: Shazeer and Stern, arXiv 1804.04235, section 8. Learned mixtures of
        hand-designed directions: arXiv 2408.09310.
    """

    signals: ClassVar[tuple[str, ...]] = controller.SIGNALS
    averages: ClassVar[bool] = True
    fuses_tensors: ClassVar[bool] = True
    permutes_with_axes: ClassVar[bool] = False
    flattens: ClassVar[bool] = True

    step_size: float = 0.1
    min_parameter_scale: float = 0.01
    max_parameter_scale: float = 0.3
    vector_step_size: float = 0.4
    vector_max_scale: float = 3.0
    vector_trust: float = 0.0
    decay_steps: float = 50.0
    anneal: float = 0.9
    average_window: float = 9.0
    tile_rows: int = 32
    tile_columns: int = 128
    hidden_size: int = 16
    hidden_layers: int = 2
    exp_mult: float = math.log(10.0)
    trust: float = 1.0

    def __post_init__(self) -> None:
        positive = ("step_size", "min_parameter_scale", "decay_steps", "average_window")
        for name in (*positive, "vector_step_size"):
            validation.check_number(name, getattr(self, name), low_open=True)
        for name in ("max_parameter_scale", "vector_max_scale"):
            validation.check_number(name, getattr(self, name), low=self.min_parameter_scale)
        validation.check_number("anneal", self.anneal, high=1.0 + 1e-9)
        validation.check_number("exp_mult", self.exp_mult)
        for name in ("trust", "vector_trust"):
            validation.check_number(name, getattr(self, name))
        for name in ("tile_rows", "tile_columns"):
            if getattr(self, name) not in tiling.LENGTHS:
                raise ValueError(
                    f"`{name}` must be one of {tiling.LENGTHS}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        validation.check_integer("hidden_size", self.hidden_size, low=1, high=4096)
        validation.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)

    def theta_shapes(self) -> Shapes:
        inputs = controller.SHARED_FEATURES + _TENSOR_FEATURES
        hidden = [self.hidden_size] * self.hidden_layers
        return {
            **networks.mlp_shapes([inputs, *hidden, len(_OUTPUTS)]),
            **dict.fromkeys(_GLOBALS, ()),
        }

    def init_theta(self, seed: int = 0) -> Arrays:
        """Random, but for the last layer and the scalars, which are zero."""
        theta = networks.random_weights(self.theta_shapes(), seed)
        theta[f"w{self.hidden_layers}"][:] = 0.0
        return theta

    def init_tensor_state(self, theta: Theta, param: Tensor, name: str) -> Tensors:
        return {}

    def init_state(
        self, theta: Theta, params: Sequence[Tensor], names: Sequence[str] | None = None
    ) -> State:
        layout, particles = self._layout(params, names), params[0].shape[0]
        tiles = {
            f"{name}_{group.name}": (len(group.segments), group.rows, group.columns)
            for group in layout.groups
            for name in ("m", "v")
        }
        statistics = {
            "initial_size": (len(params),),
            "square": (len(params), len(_SQUARE_DECAYS)),
            "alignment": (len(params),),
            "average_weight": (),
        }
        shared = {
            name: ops.zeros((particles, *shape), "float32")
            for name, shape in (tiles | statistics).items()
        }
        return base.State([{} for _ in params], controller.init_losses(particles) | shared)

    def update_tensor(
        self,
        theta: Theta,
        state: Tensors,
        message: Tensors,
        grad: Tensor,
        param: Tensor,
        signals: Signals,
    ) -> tuple[Tensor, Tensors]:
        raise TypeError("DirectionMixture steps with all tensors at once, by `update`.")

    def average_weight(self, state: State) -> Tensor:
        return state.shared["average_weight"]

    def update(
        self,
        theta: Theta,
        state: State,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        signals: Signals,
        names: Sequence[str] | None = None,
    ) -> tuple[list[Tensor], State]:
        layout = self._layout(params, names)
        grads, params = layout.gather(grads), layout.gather(params)
        seen = self._look(theta, state, grads, params, signals, layout)
        outputs, (step_size, max_scale, _) = seen.outputs, seen.constants
        scale = ops.clip(seen.own.sizes, self.min_parameter_scale, max_scale)
        factor = ops.exp(self.exp_mult * outputs["factor"])
        factor = step_size * self._schedule(signals)[:, None] * factor
        lookahead = _LOOKAHEAD * ops.exp(_LOOKAHEAD_MULT * outputs["lookahead"])
        # Relative to the step, as if the tensor had a size of 1.
        decay = _WEIGHT_DECAY * ops.maximum(outputs["decay"], 0.0) * factor
        *chosen, decays = layout.spread(lookahead, outputs["mix"], factor * scale, decay)
        steps = _steps(seen.moments, seen.adam, grads, chosen, layout)
        updates = [s - d * p for s, d, p in zip(steps, decays, params, strict=True)]
        shared = {
            **{f"m_{g.name}": m for g, m in zip(layout.groups, seen.moments.m, strict=True)},
            **{f"v_{g.name}": v for g, v in zip(layout.groups, seen.moments.v, strict=True)},
            **seen.statistics,
            "average_weight": self._average_weight(outputs, signals),
        }
        return layout.scatter(updates), base.State(state.tensors, shared)

    def controls(
        self,
        theta: Theta,
        state: State,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        signals: Signals,
        names: Sequence[str] | None = None,
    ) -> Tensors:
        """What the network chooses for each tensor in the step that `update` would take.

        Args:
            theta, state, grads, params, signals, names: as for `update`.

        Returns:
            Dict of `[P, tensors]`: `factor` of the step, `mix`, the fraction of what Adam's
            direction differs from Muon's, `lookahead`, the c of Muon's direction, `decay`,
            the fraction of the relative step that is taken from a parameter, and `window` of
            the average, whose logarithm is averaged over the tensors.
        """
        layout = self._layout(params, names)
        grads, params = layout.gather(grads), layout.gather(params)
        outputs = self._look(theta, state, grads, params, signals, layout).outputs
        return {
            "factor": ops.exp(self.exp_mult * outputs["factor"]),
            "mix": outputs["mix"],
            "lookahead": _LOOKAHEAD * ops.exp(_LOOKAHEAD_MULT * outputs["lookahead"]),
            "decay": _WEIGHT_DECAY * ops.maximum(outputs["decay"], 0.0),
            "window": self.average_window * ops.exp(_WINDOW_MULT * outputs["window"]),
        }

    def _look(
        self,
        theta: Theta,
        state: State,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        signals: Signals,
        layout: tiling.Tiling,
    ) -> "_Seen":
        """All up to the outputs of the network; gradients and parameters are in tiles."""
        constants = self._constants(layout)
        *_, trust = constants
        moments = self._moments(theta, state.shared, grads, layout, trust)
        adam, measured = _adam_directions(moments, signals, params, grads, layout)
        losses, heard = controller.listen(state.shared, signals)
        statistics, own = _tensor_features(state.shared, adam, measured, signals, layout)
        outputs = self._network(theta, heard, own, trust)
        return _Seen(moments, adam, own, outputs, {**losses, **statistics}, constants)

    def _constants(self, layout: tiling.Tiling) -> tuple[float, float, float]:
        """The size of a step, the largest size of a tensor, and the trust in the network."""
        if any(_is_matrix(shape) for shape in layout.shapes):
            return self.step_size, self.max_parameter_scale, self.trust
        return self.vector_step_size, self.vector_max_scale, self.vector_trust

    def _layout(self, params: Sequence[Tensor], names: Sequence[str] | None) -> tiling.Tiling:
        names = names or [""] * len(params)
        shapes = tuple(tuple(param.shape[1:]) for param in params)
        matrices = tuple(
            _is_matrix(shape) and "embedding" not in name.lower()
            for shape, name in zip(shapes, names, strict=True)
        )
        return tiling.tiling(shapes, matrices, self.tile_rows, self.tile_columns)

    def _moments(
        self, theta: Theta, shared: Tensors, grads: Sequence[Tensor], layout: Any, trust: float
    ) -> "_Moments":
        momentum, second_decay = (
            1.0 - ops.minimum((1.0 - start) * ops.exp(trust * _GLOBAL_MULT * theta[name]), _FASTEST)
            for name, start in _GLOBALS.items()
        )
        momentum, second_decay = (x[:, None, None, None] for x in (momentum, second_decay))
        m = [
            features.accumulate(shared[f"m_{group.name}"], grad, momentum)
            for group, grad in zip(layout.groups, grads, strict=True)
        ]
        v = [
            features.accumulate(shared[f"v_{group.name}"], ops.square(grad), second_decay)
            for group, grad in zip(layout.groups, grads, strict=True)
        ]
        return _Moments(m, v, second_decay)

    def _network(self, theta: Theta, heard: Tensor, own: Any, trust: float) -> Tensors:
        """The outputs, each `tanh` of `[P, tensors]`: dict."""
        tensors = own.inputs.shape[1]
        first = networks.first_layer(theta, heard)[:, None]
        x = first + ops.matmul(own.inputs, theta["w0"][:, heard.shape[1] :])
        for i in range(1, self.hidden_layers + 1):
            x = ops.matmul(ops.maximum(x, 0.0), theta[f"w{i}"]) + theta[f"b{i}"][:, None]
        x = ops.tanh(trust * ops.reshape(x, (-1, tensors, len(_OUTPUTS))))
        return {name: x[:, :, i] for i, name in enumerate(_OUTPUTS)}

    def _average_weight(self, outputs: Tensors, signals: Signals) -> Tensor:
        window = ops.exp(_WINDOW_MULT * ops.mean(outputs["window"], axis=1))
        window = self.average_window * window
        return window / (ops.cast(signals.step, "float32") + window)

    def _schedule(self, signals: Signals) -> Tensor:
        """The factor of time alone, `[P]`."""
        fraction = controller.horizon(signals)[:, 0]
        count = ops.cast(signals.step, "float32")
        return ops.rsqrt(1.0 + count / self.decay_steps) * (1.0 - self.anneal * fraction)


class _Moments(NamedTuple):
    """The accumulators of g and g^2.

    Attributes:
        m, v: in tiles, lists of `[P, N, rows, columns]`.
        second_decay: of v, `[P, 1, 1, 1]`.
    """

    m: list[Tensor]
    v: list[Tensor]
    second_decay: Tensor


class _Adam(NamedTuple):
    """Adam's directions.

    Attributes:
        tiles: list of `[P, N, rows, columns]`.
        tile_squares: list of `[P, N, 1, 1]`, their sums of squares.
        sizes: `[P, tensors]`, root mean squares before they were bounded by 1.
    """

    tiles: Any
    tile_squares: Any
    sizes: Any


class _Own(NamedTuple):
    """What the network reads of each tensor.

    Attributes:
        inputs: `[P, tensors, F]`.
        sizes: `[P, tensors]`, root mean squares of the parameters.
    """

    inputs: Any
    sizes: Any


class _Seen(NamedTuple):
    """What a step rests on.

    Attributes:
        moments: `_Moments`.
        adam: `_Adam`.
        own: `_Own`.
        outputs: of the network, dict of `[P, tensors]`.
        statistics: the running statistics of losses and tensors, for the state.
        constants: what `_constants` gives.
    """

    moments: Any
    adam: Any
    own: Any
    outputs: Any
    statistics: Any
    constants: Any


def _adam_directions(
    moments: _Moments,
    signals: Signals,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    layout: Any,
) -> tuple[_Adam, list[Tensor]]:
    """Adam's directions; and the sums of P^2, P g and g^2 over each tensor, `[P, tensors]`."""
    # The bias of m is left as it is: it makes the first ten steps a warm-up.
    age = ops.reshape(ops.cast(signals.step, "float32") + 1.0, (-1, 1, 1, 1))
    unbiased = ops.sqrt(1.0 - ops.power(moments.second_decay, age))
    pairs = zip(moments.m, moments.v, strict=True)
    tiles = [unbiased * m * ops.rsqrt(v + _TINY) for m, v in pairs]
    squares = [_total(ops.square(tile)) for tile in tiles]
    products = (
        [_total(a * b) for a, b in zip(first, second, strict=True)]
        for first, second in ((params, params), (params, grads), (grads, grads))
    )
    total, *measured = layout.sums(squares, *products)
    sizes = _root_mean_squares(total, layout)
    (bounds,) = layout.spread(1.0 / ops.maximum(sizes, 1.0))
    return _Adam(
        [tile * bound for tile, bound in zip(tiles, bounds, strict=True)],
        [square * ops.square(bound) for square, bound in zip(squares, bounds, strict=True)],
        sizes,
    ), measured


def _steps(
    moments: _Moments,
    adam: _Adam,
    grads: Sequence[Tensor],
    chosen: Sequence[Sequence[Tensor]],
    layout: Any,
) -> list[Tensor]:
    """The steps as tiles; `chosen` are the look-ahead, the mixture and the size of each."""
    steps = []
    for i, group in enumerate(layout.groups):
        ahead, mix, scale = (x[i] for x in chosen)
        direction = adam.tiles[i]
        if group.rows > 1:
            muon = orthogonalized_wide(moments.m[i] + ahead * (grads[i] - moments.m[i]))
            # The square of what is added has to be a number in float32, for the derivative.
            ratio = adam.tile_squares[i] / (_total(ops.square(muon)) + 1e-12)
            size = ops.sqrt(ratio + _TINY)
            muon = muon * size
            direction = muon + mix * (direction - muon)
        steps.append(-scale * direction)
    return steps


def _tensor_features(
    shared: Tensors, adam: _Adam, measured: Any, signals: Signals, layout: Any
) -> tuple[Tensors, _Own]:
    """New running statistics of the tensors, and `_Own`.

    The alignment of P and g is zero, but for rounding, where the loss does not depend on the
    scale of P, as before a normalisation (Euler's theorem on homogeneous functions).
    """
    params, products, grads = measured
    counts = features.constant([layout.counts])
    count = ops.cast(signals.step, "float32")[:, None] + 1.0
    sizes, grad_sizes = (_root_mean_squares(x, layout) for x in (params, grads))
    initial = ops.where(count > 1.0, shared["initial_size"], sizes)
    square = features.accumulate(
        shared["square"], (grads / counts)[:, :, None], features.constant(_SQUARE_DECAYS)
    )
    cosine = products * ops.rsqrt(params + 1e-18) * ops.rsqrt(grads + 1e-18)
    alignment = ops.square(cosine) * counts
    alignment = features.accumulate(
        shared["alignment"], ops.minimum(alignment, 10.0), _ALIGNMENT_DECAY
    )
    bias = 1.0 - ops.power(features.constant(_SQUARE_DECAYS), count[:, :, None])
    relative = ops.log(grad_sizes + 1e-12)[:, :, None] - 0.5 * ops.log(square / bias + 1e-24)
    alignment_bias = 1.0 - ops.power(_ALIGNMENT_DECAY, count)
    columns = [
        0.2 * features.clipped_log(grad_sizes),
        0.2 * features.clipped_log(sizes),
        ops.log(adam.sizes + 1e-6),
        0.2 * ops.log(alignment / alignment_bias + 1e-6) + 1.0,
        ops.clip(ops.log((sizes + 1e-3) / (initial + 1e-3)), -5.0, 5.0),
    ]
    columns = ops.concatenate([ops.clip(relative, -5.0, 5.0), ops.stack(columns, axis=2)], axis=2)
    constants = features.constant([_layout_features(layout)])
    constants = ops.zeros_like(columns[:, :, :1]) + constants
    inputs = ops.concatenate([columns, constants], axis=2)
    kept = {"square": square, "alignment": alignment, "initial_size": initial}
    return kept, _Own(inputs, sizes)


def _layout_features(layout: Any) -> Array:
    """What a tensor's shape and place say of it: `[tensors, 12]`, NumPy."""
    rows = []
    for i, (shape, is_matrix) in enumerate(zip(layout.shapes, layout.as_matrices, strict=True)):
        rank, size = len(shape), math.prod(shape)
        short = min(size // shape[-1], shape[-1]) if rank > 1 else 1
        place = i / max(len(layout.shapes) - 1, 1)
        ranks = [rank == 0, rank == 1, rank == 2, rank > 2]
        ends = [i == 0, i == len(layout.shapes) - 1]
        logs = [
            math.log(size) / 5.0 - 1.0,
            math.log(short) / 3.0 - 1.0,
            math.log(len(layout.shapes)) / 2.0 - 1.0,
        ]
        rows.append([*ranks, is_matrix, *ends, 2.0 * place - 1.0, *logs, short == size])
    return np.asarray(rows, "float32")


def _is_matrix(shape: Shape) -> bool:
    return len(shape) >= 2 and 1 < shape[-1] < math.prod(shape)


def _root_mean_squares(squares: Tensor, layout: Any) -> Tensor:
    """From sums of squares `[P, tensors]`."""
    # Not exactly zero, where the square root has no derivative.
    return ops.sqrt(squares / features.constant([layout.counts]) + 1e-30)


def _total(tiles: Tensor) -> Tensor:
    """The sum over each tile: `[P, N, 1, 1]`."""
    return reductions.total(tiles, (2, 3))
