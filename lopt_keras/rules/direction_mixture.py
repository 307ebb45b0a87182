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
# Tensors whose scale does not matter have an alignment of 1e-4 and less, others of 3e-2 and more.
# The mean over fewer steps than these can be small by chance.
_SCALE_FREE, _LEAST_STEPS = 0.003, 5
_GLOBALS = {"momentum": 0.9, "second_decay": 0.99}
_GLOBAL_MULT, _LOOKAHEAD, _LOOKAHEAD_MULT, _WINDOW_MULT = 3.0, 0.1, 1.5, 1.5
_FASTEST = 0.99  # What a decay leaves of an accumulator is more than nothing.
_TINY = 1e-20
_TRUST_FALL = 0.25
_SPARE, _LEAST_SPARE = 2**14, 2**10


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
    5. A learned fraction of the parameter is taken away, at most `max_decay` of the step's, and
       at most twice the square of the relative step where the loss does not depend on the scale.

    The parameters themselves jitter. A user should keep their running average, in which the
    newest have the weight `w / (t + w)`. So `averages` is true. w is `average_window` times a
    learned factor.

    One small MLP for all tensors reads time, horizon, losses and statistics of each tensor.
    Its outputs start at zero. So the untrained rule is a hand-designed optimizer. With
    `least_fall`, the outputs count after step 100 only as far as the training loss has begun to
    fall. On a plateau gradients are mostly noise, and only the two learned scalars are left. With
    `trusted_size`, what was learned counts less in models larger than those of meta-training.

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
        max_decay: of a parameter, as a fraction of the relative step.
        average_window: w.
        tile_rows, tile_columns: of the largest tiles, powers of two.
        hidden_size, hidden_layers: of the MLP.
        exp_mult: logarithm of the largest learned factor.
        least_fall: by how many standard deviations of the losses of batches the training loss has
            to fall before the network counts in full. 0: it counts at once.
        trust: multiplies what was learned, the outputs of the MLP before `tanh` and the two
            scalars. 1 is as meta-trained, 0 the untrained rule.
        trusted_size: number of parameters of the largest model in which `trust` is what it is. In
            one of n it is `(trusted_size / n)^(1/4)` times as much. 0: of whatever size.

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
    anneal: float = 0.5
    max_decay: float = 0.1
    average_window: float = 9.0
    tile_rows: int = 32
    tile_columns: int = 128
    hidden_size: int = 16
    hidden_layers: int = 2
    exp_mult: float = math.log(10.0)
    least_fall: float = 0.0
    trust: float = 1.0
    trusted_size: float = 0.0

    def __post_init__(self) -> None:
        positive = ("step_size", "min_parameter_scale", "decay_steps", "average_window")
        for name in (*positive, "vector_step_size"):
            validation.check_number(name, getattr(self, name), low_open=True)
        for name in ("max_parameter_scale", "vector_max_scale"):
            validation.check_number(name, getattr(self, name), low=self.min_parameter_scale)
        validation.check_number("anneal", self.anneal, high=1.0 + 1e-9)
        for name in (
            "exp_mult",
            "max_decay",
            "least_fall",
            "trust",
            "vector_trust",
            "trusted_size",
        ):
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
        losses = controller.init_losses(particles)
        if self.least_fall:
            losses |= controller.init_progress(particles)
        return base.State([{} for _ in params], losses | shared)

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
        flat = layout.flat(grads)
        tiles = layout.gather(flat)
        seen = self._look(theta, state, tiles, flat, layout.flat(params), signals, layout)
        outputs, (step_size, max_scale, _) = seen.outputs, seen.constants
        scale = ops.clip(seen.own.sizes, self.min_parameter_scale, max_scale)
        factor = ops.exp(self.exp_mult * outputs["factor"])
        # XLA would compute a product anew wherever it is read, but no quotient.
        inverse = 1.0 / (step_size * self._schedule(signals)[:, None] * factor)
        lookahead = _LOOKAHEAD * ops.exp(_LOOKAHEAD_MULT * outputs["lookahead"])
        # Relative to the step, as if the tensor had a size of 1.
        decay = self.max_decay * ops.maximum(outputs["decay"], 0.0) / inverse
        decay = _bounded_decay(decay, scale / inverse, seen.own, signals)
        values = seen.own.bounds, lookahead, outputs["mix"], inverse / scale, decay
        *chosen, decays = layout.spread(*values)
        steps = layout.scatter(_steps(seen.moments, seen.adam, tiles, chosen, layout))
        triples = zip(steps, layout.firsts(decays), params, strict=True)
        updates = [
            step - ops.reshape(decay, (-1, *(1,) * (len(param.shape) - 1))) * param
            for step, decay, param in triples
        ]
        shared = {
            **{f"m_{g.name}": m for g, m in zip(layout.groups, seen.moments.m, strict=True)},
            **{f"v_{g.name}": v for g, v in zip(layout.groups, seen.moments.v, strict=True)},
            **seen.statistics,
            "average_weight": self._average_weight(outputs, signals),
        }
        return updates, base.State(state.tensors, shared)

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
        grads, params = layout.flat(grads), layout.flat(params)
        tiles = layout.gather(grads)
        outputs = self._look(theta, state, tiles, grads, params, signals, layout).outputs
        return {
            "factor": ops.exp(self.exp_mult * outputs["factor"]),
            "mix": outputs["mix"],
            "lookahead": _LOOKAHEAD * ops.exp(_LOOKAHEAD_MULT * outputs["lookahead"]),
            "decay": self.max_decay * ops.maximum(outputs["decay"], 0.0),
            "window": self.average_window * ops.exp(_WINDOW_MULT * outputs["window"]),
        }

    def _look(
        self,
        theta: Theta,
        state: State,
        tiles: Sequence[Tensor],
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        signals: Signals,
        layout: tiling.Tiling,
    ) -> "_Seen":
        """All up to the outputs of the network.

        Args:
            tiles: of the gradients.
            grads, params: flat.
        """
        constants = self._constants(layout)
        *_, trust = constants
        moments = self._moments(theta, state.shared, tiles, layout, trust)
        adam, squares = _adam_directions(moments, signals, layout)
        squares = ops.stack([squares, *_products(params, grads, layout)], axis=2)
        losses, heard = controller.listen(state.shared, signals)
        statistics, own = _tensor_features(state.shared, squares, signals, layout)
        if self.least_fall:
            progress, begun = controller.begun(state.shared, losses, signals, self.least_fall)
            losses, trust = losses | progress, trust * begun[:, None]
        outputs = self._network(theta, heard, own, trust)
        return _Seen(moments, adam, own, outputs, {**losses, **statistics}, constants)

    def _constants(self, layout: tiling.Tiling) -> tuple[float, float, float]:
        """The size of a step, the largest size of a tensor, and the trust in the network."""
        if any(_is_matrix(shape) for shape in layout.shapes):
            excess = sum(layout.counts) / self.trusted_size if self.trusted_size else 0.0
            trust = self.trust * max(excess, 1.0) ** -_TRUST_FALL
            return self.step_size, self.max_parameter_scale, trust
        return self.vector_step_size, self.vector_max_scale, self.vector_trust

    def _layout(self, params: Sequence[Tensor], names: Sequence[str] | None) -> tiling.Tiling:
        names = names or [""] * len(params)
        shapes = tuple(tuple(param.shape[1:]) for param in params)
        matrices = tuple(
            _is_matrix(shape) and "embedding" not in name.lower()
            for shape, name in zip(shapes, names, strict=True)
        )
        # Zeros cost each particle time, and fewer groups save it for all.
        spare = max(_SPARE // params[0].shape[0], _LEAST_SPARE)
        return tiling.tiling(shapes, matrices, self.tile_rows, self.tile_columns, spare)

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

    def _network(self, theta: Theta, heard: Tensor, own: Any, trust: Any) -> Tensors:
        """The outputs, each `tanh` of `[P, tensors]`: dict. `trust`: a number or `[P, 1, 1]`."""
        measured, constants = own.inputs.shape[2], own.constants
        of_own = theta["w0"][:, heard.shape[1] :]
        x = networks.first_layer(theta, heard)[:, None]
        x = x + ops.matmul(own.inputs, of_own[:, :measured])
        x = x + ops.matmul(constants, of_own[:, measured:])
        for i in range(1, self.hidden_layers + 1):
            x = ops.matmul(ops.maximum(x, 0.0), theta[f"w{i}"]) + theta[f"b{i}"][:, None]
        x = ops.tanh(trust * ops.reshape(x, (-1, constants.shape[1], len(_OUTPUTS))))
        return dict(zip(_OUTPUTS, ops.unstack(x, axis=2), strict=True))

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
    """Adam's directions before they are bounded.

    Attributes:
        tiles: list of `[P, N, rows, columns]`.
        tile_squares: list of `[P, N, 1, 1]`, their sums of squares.
    """

    tiles: Any
    tile_squares: Any


class _Own(NamedTuple):
    """What the network reads of each tensor.

    Attributes:
        inputs: `[P, tensors, F]`, which change from step to step.
        constants: `[1, tensors, 12]`, those of `_layout_features`.
        sizes: `[P, tensors]`, root mean squares of the parameters.
        bounds: `[P, tensors]`, factors of Adam's directions.
        directions: `[P, tensors]`, root mean squares of Adam's directions within the bounds.
        alignments: `[P, tensors]`, of P and g: running means of n times their squared cosine.
    """

    inputs: Any
    constants: Any
    sizes: Any
    bounds: Any
    directions: Any
    alignments: Any


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


def _adam_directions(moments: _Moments, signals: Signals, layout: Any) -> tuple[_Adam, Tensor]:
    """Adam's directions, and the sums of their squares over each tensor, `[P, tensors]`."""
    # The bias of m is left as it is: it makes the first ten steps a warm-up.
    age = ops.reshape(ops.cast(signals.step, "float32") + 1.0, (-1, 1, 1, 1))
    unbiased = ops.sqrt(1.0 - ops.power(moments.second_decay, age))
    pairs = zip(moments.m, moments.v, strict=True)
    tiles = [unbiased * m * ops.rsqrt(v + _TINY) for m, v in pairs]
    squares = [_total(ops.square(tile)) for tile in tiles]
    (total,) = layout.sums(squares)
    return _Adam(tiles, squares), total


def _products(params: Sequence[Tensor], grads: Sequence[Tensor], layout: Any) -> list[Tensor]:
    """The sums of P^2, g^2 and P g over each tensor: three of `[P, tensors]`."""
    p, g = layout.rows(params), layout.rows(grads)
    products = [ops.square(p), ops.square(g), p * g]
    return layout.row_sums(*[reductions.row_totals(product) for product in products])


def _bounded_decay(decay: Tensor, step_sizes: Tensor, own: _Own, signals: Signals) -> Tensor:
    """The decay of the parameters, `[P, tensors]`, slower where their scale does not matter.

    There decay only leaves behind the moving statistics of a batch normalisation that follows,
    as steps are relative to the size. A step at a right angle to a tensor makes it larger by
    half of the square of the relative step. At most four times as much is taken away.

    Reference:
        Wan et al., "Spherical motion dynamics", arXiv 2006.08419, section 3.

    Args:
        decay: `[P, tensors]`, fractions of the parameters.
        step_sizes: `[P, tensors]`, of a step with a direction of size 1.
    """
    relative = step_sizes * own.directions / own.sizes
    free = (own.alignments < _SCALE_FREE) & (signals.step >= _LEAST_STEPS)[:, None]
    return ops.where(free, ops.minimum(decay, 2.0 * ops.square(relative)), decay)


def _steps(
    moments: _Moments,
    adam: _Adam,
    grads: Sequence[Tensor],
    chosen: Sequence[Sequence[Tensor]],
    layout: Any,
) -> list[Tensor]:
    """The steps as tiles.

    Args:
        grads: as tiles.
        chosen: the bound of Adam's direction, the look-ahead, the mixture, and 1 divided by
            the size of the step.
    """
    steps = []
    for i, group in enumerate(layout.groups):
        bound, ahead, mix, inverse = (x[i] for x in chosen)
        direction = adam.tiles[i] * bound
        if group.rows > 1:
            muon = orthogonalized_wide(moments.m[i] + ahead * (grads[i] - moments.m[i]))
            # The square of what is added has to be a number in float32, for the derivative.
            ratio = adam.tile_squares[i] / (_total(ops.square(muon)) + 1e-12)
            muon = muon * (bound * ops.sqrt(ratio + _TINY))
            direction = muon + mix * (direction - muon)
        steps.append(direction / -inverse)
    return steps


def _tensor_features(
    shared: Tensors, squares: Tensor, signals: Signals, layout: Any
) -> tuple[Tensors, _Own]:
    """New running statistics of the tensors, and `_Own`.

    The alignment of P and g is zero, but for rounding, where the loss does not depend on the
    scale of P, as before a normalisation (Euler's theorem on homogeneous functions).

    Args:
        squares: `[P, tensors, 4]`, sums over each tensor of the squares of Adam's direction,
            of P^2, of g^2, and of P g.
    """
    counts = features.constant([layout.counts])
    count = ops.cast(signals.step, "float32")[:, None] + 1.0
    # Not exactly zero, where the square root has no derivative.
    means = squares / counts[:, :, None]
    roots = ops.sqrt(means[:, :, :3] + 1e-30)
    sizes = roots[:, :, 1]
    initial = ops.where(count > 1.0, shared["initial_size"], sizes)
    square = features.accumulate(
        shared["square"], means[:, :, 2:3], features.constant(_SQUARE_DECAYS)
    )
    inverse = ops.rsqrt(squares[:, :, 1:3] + 1e-18)
    cosine = squares[:, :, 3] * inverse[:, :, 0] * inverse[:, :, 1]
    alignment = features.accumulate(
        shared["alignment"], ops.minimum(ops.square(cosine) * counts, 10.0), _ALIGNMENT_DECAY
    )
    decays = features.constant([*_SQUARE_DECAYS, _ALIGNMENT_DECAY])
    unbiased = ops.concatenate([square, alignment[:, :, None]], axis=2)
    unbiased = unbiased / (1.0 - ops.power(decays, count[:, :, None]))
    values = ops.concatenate([roots, unbiased, initial[:, :, None]], axis=2)
    kept = {"square": square, "alignment": alignment, "initial_size": initial}
    bounds = 1.0 / ops.maximum(roots[:, :, 0], 1.0)
    constants = features.constant([_layout_features(layout)])
    directions, alignments = roots[:, :, 0] * bounds, unbiased[:, :, -1]
    return kept, _Own(_logarithms(values), constants, sizes, bounds, directions, alignments)


# What `_logarithms` reads: the sizes of Adam's direction, P and g, the mean squares of g at three
# decays, the alignment, the first size of P.
_ADAM, _PARAM, _GRAD, _SQUARE, _ALIGNMENT, _INITIAL = 0, 1, 2, 3, 6, 7
# Of each feature: the weights of the logarithms of (values, what is added to them).
_COMBINATIONS = (
    *({(_GRAD, 1e-12): 1.0, (_SQUARE + i, 1e-24): -0.5} for i in range(len(_SQUARE_DECAYS))),
    {(_GRAD, 1e-8): 1.0},
    {(_PARAM, 1e-8): 1.0},
    {(_ADAM, 1e-6): 1.0},
    {(_ALIGNMENT, 1e-6): 1.0},
    {(_PARAM, 1e-3): 1.0, (_INITIAL, 1e-3): -1.0},
)
_LARGEST = (*(5.0,) * (len(_SQUARE_DECAYS) + 2), 1e9, 1e9, 5.0)
_SCALES = (*(1.0,) * len(_SQUARE_DECAYS), 0.2, 0.2, 1.0, 0.2, 1.0)
_SHIFTS = (*(0.0,) * (len(_SQUARE_DECAYS) + 3), 1.0, 0.0)


def _logarithms(values: Tensor) -> Tensor:
    """The features of `[P, tensors, 8]`, all at once, as operations cost time to compile."""
    read = sorted({key for combination in _COMBINATIONS for key in combination})
    columns = ops.take(values, [column for column, _ in read], axis=2)
    logs = ops.log(columns + features.constant([added for _, added in read]))
    weights = [[combination.get(key, 0.0) for combination in _COMBINATIONS] for key in read]
    x = ops.matmul(logs, features.constant(weights))
    x = ops.clip(x, -features.constant(_LARGEST), features.constant(_LARGEST))
    return x * features.constant(_SCALES) + features.constant(_SHIFTS)


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


def _total(tiles: Tensor) -> Tensor:
    """The sum over each tile: `[P, N, 1, 1]`."""
    rows = reductions.row_totals(tiles)
    rows = reductions.row_totals(rows) if rows.shape[2] > 1 else rows[:, :, 0]
    return rows[:, :, None, None]
