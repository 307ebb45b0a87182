"""A small network that reads how a tensor's training goes, once a step."""

import dataclasses
import math
from typing import NamedTuple

from keras import ops

from lopt_keras import features, loss_statistics, networks, reductions, validation
from lopt_keras.signals import Signal, Signals
from lopt_keras.types import Arrays, Shapes, Tensor, Tensors, Theta

SIGNALS = ("train_loss", "validation_loss", "total_steps")
"""What a controller hears."""

_TRAIN_DECAYS, _VALID_DECAYS = (0.9, 0.99, 0.999), (0.5, 0.9)
_GRAD_DECAYS = (0.9, 0.99, 0.999)
_LOSS_FEATURES = 9
_FIRST_LOSSES, _GRACE, _ROUNDING = 10.0, 50.0, 1e-4
SHARED_FEATURES = len(features.TIMESCALES) + 2 + _LOSS_FEATURES
"""How many features all tensors share."""
_TENSOR_FEATURES = 8 + len(_GRAD_DECAYS)


@dataclasses.dataclass(frozen=True)
class Controller:
    """An MLP that reads time, horizon, losses and statistics of one tensor.

    Its features, all of the order of 1 and most of them free of the scale of the
    loss:

    - `tanh(t / c - 1)`, as `features.time_embedding`, and the fraction of the horizon
      that has passed (0 if it is not known) and whether it is known;
    - the training loss relative to its running mean at three decays, the faster
      means relative to the slowest, the validation loss relative to the training
      loss, its faster mean relative to its slower, and whether it is known; all
      0 while nothing has been heard;
    - the root mean square of g relative to its running values at three decays, its
      logarithm and that of P and of the step relative to P, the cosine of g and the
      step, the logarithm of the number of entries, and whether the rank is 0, 1 or more.

    Args:
        prefix: of the names of its weights in theta.
        outputs: number of outputs.
        hidden_size: units in each hidden layer (ReLU).
        hidden_layers: number of hidden layers.
    """

    prefix: str
    outputs: int
    hidden_size: int
    hidden_layers: int

    def __post_init__(self) -> None:
        validation.check_integer("hidden_size", self.hidden_size, low=1, high=4096)
        validation.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)

    def theta_shapes(self) -> Shapes:
        inputs = SHARED_FEATURES + _TENSOR_FEATURES
        hidden = [self.hidden_size] * self.hidden_layers
        return networks.mlp_shapes([inputs, *hidden, self.outputs], self.prefix)

    def init_theta(self, seed: int) -> Arrays:
        """Random, but for the last layer: the outputs start at zero."""
        theta = networks.random_weights(self.theta_shapes(), seed)
        theta[f"{self.prefix}w{self.hidden_layers}"][:] = 0.0
        return theta

    def init_shared_state(self, particles: int) -> Tensors:
        """Statistics of the losses: dict of `[P, ...]`."""
        return init_losses(particles)

    def init_tensor_state(self, param: Tensor) -> Tensors:
        """Running means of g^2: dict of `[P, ..., *ones]`."""
        particles, rank = param.shape[0], len(param.shape) - 1
        return {"mean_square": ops.zeros((particles, len(_GRAD_DECAYS), *(1,) * rank), "float32")}

    def listen(self, theta: Theta, shared: Tensors, signals: Signals) -> tuple[Tensors, Tensor]:
        """`(shared, heard)`: the new statistics, and what all tensors share, `[P, hidden_size]`."""
        losses, heard = listen(shared, signals)
        return losses, networks.first_layer(theta, heard, self.prefix)

    def __call__(
        self, theta: Theta, state: Tensors, heard: Tensor, measured: "Measured", signals: Signals
    ) -> tuple[Tensor, Tensors]:
        """The outputs `[P, outputs]` for one tensor, and its new state.

        Args:
            theta: dict of `[P, ...]`.
            state: as `init_tensor_state` or the last call returned it.
            heard: from `listen`.
            measured: from `measure`.
            signals: `Signals`.
        """
        mean_square = features.accumulate(
            ops.reshape(state["mean_square"], (-1, len(_GRAD_DECAYS))),
            measured.means[:, :1],
            features.constant([_GRAD_DECAYS]),
        )
        x = _tensor_features(mean_square, measured, signals.step)
        outputs = networks.mlp(theta, x, self.hidden_layers, self.prefix, heard)
        return outputs, {"mean_square": features.broadcast_over(mean_square, measured.rank)}


def init_losses(particles: int) -> Tensors:
    """Statistics of the losses before the first step: dict of `[P, ...]`."""
    return {
        **loss_statistics.init(particles, _TRAIN_DECAYS, "train"),
        **loss_statistics.init(particles, _VALID_DECAYS, "valid"),
    }


def listen(shared: Tensors, signals: Signals) -> tuple[Tensors, Tensor]:
    """The new statistics of the losses, and the features `[P, F]` that all tensors share."""
    train = loss_statistics.observe(shared, signals.train_loss, _TRAIN_DECAYS, "train")
    valid = loss_statistics.observe(shared, signals.validation_loss, _VALID_DECAYS, "valid")
    heard = [features.time_embedding(signals.step), horizon(signals)]
    heard += [_loss_features(train, valid, signals.train_loss)]
    return {**train, **valid}, ops.concatenate(heard, axis=1)


def init_progress(particles: int) -> Tensors:
    """What `begun` keeps, before the first step: dict of `[P, 1]`."""
    return {"first_loss": ops.zeros((particles, 1), "float32")}


def begun(
    shared: Tensors, losses: Tensors, signals: Signals, least_fall: float
) -> tuple[Tensors, Tensor]:
    """What to keep, and how far the training loss has begun to fall: `[P, 1]`, from 0 to 1.

    It is 1 once the mean of some hundred losses is so much below the mean of the first ten. It
    falls from 1 only between step 50 and step 100. Where no loss is heard it is 1.

    Args:
        shared: the state before this step.
        losses: from `listen`.
        signals: `Signals`.
        least_fall: how much, in standard deviations of the losses of batches, above 0.
    """
    count = losses["train_count"]
    means = loss_statistics.corrected_mean(losses, _TRAIN_DECAYS, "train")
    deviation = loss_statistics.corrected_deviation(losses, _TRAIN_DECAYS, "train")[:, :1]
    first = ops.where(count <= _FIRST_LOSSES, means[:, :1], shared["first_loss"])
    # Running means of a constant differ by their rounding, as its deviation is 0.
    fall = (first - means[:, 1:2]) / (least_fall * (deviation + _ROUNDING * ops.abs(first)))
    grace = 2.0 - ops.cast(signals.step, "float32")[:, None] / _GRACE
    share = ops.clip(ops.maximum(fall, grace), 0.0, 1.0)
    return {"first_loss": first}, ops.where(count > 0, share, 1.0)


class Measured(NamedTuple):
    """What the controller reads of one tensor.

    Attributes:
        means: `[P, 4]`, over the entries: of g^2, P^2, s^2 and g s, s being the step.
        size: number of entries, a scalar.
        rank: of the tensor.
    """

    means: Tensor
    size: Tensor
    rank: int

    @property
    def root_mean_squares(self) -> Tensor:
        """Of g, P and s: `[P, 3]`."""
        # Not exactly zero, where the square root has no derivative.
        return ops.sqrt(self.means[:, :3] + 1e-30)


def measure(grad: Tensor, param: Tensor, step: Tensor) -> Measured:
    """`Measured` of a tensor.

    Args:
        grad, param: `[P, *shape]`.
        step: `[P, *shape]`, the step as it would be.
    """
    # In the tensor's own shape, in which a rule sums as well: XLA then sums P^2 only once.
    g, p, s = (x[:, None] for x in (grad, param, step))
    squares = [ops.square(g), ops.square(p), ops.square(s), g * s]
    axes = tuple(range(2, len(p.shape)))
    means = reductions.means(squares, axes) if axes else ops.concatenate(squares, axis=1)
    means = ops.reshape(means, (-1, len(squares)))
    # Not `param.shape`: in the signatures of an export, sizes are not known.
    size = ops.cast(math.prod(ops.shape(param)[1:]), "float32")
    return Measured(means, size, len(param.shape) - 1)


def horizon(signals: Signals) -> Tensor:
    """The fraction of the planned steps that has passed, and whether it is known: `[P, 2]`."""
    known = signals.total_steps.known
    total = ops.where(known, signals.total_steps.value, 1.0)
    fraction = ops.clip(ops.cast(signals.step, "float32") / total, 0.0, 1.0)
    known = ops.cast(known, "float32")
    return ops.stack([fraction * known, known], axis=1)


def _loss_features(train: Tensors, valid: Tensors, loss: Signal) -> Tensor:
    """`[P, 9]`, zero where nothing is known."""
    means = loss_statistics.corrected_mean(train, _TRAIN_DECAYS, "train")
    loss = ops.where(loss.known[:, None], loss.value[:, None], means)
    surprise = loss_statistics.normalise(train, loss, _TRAIN_DECAYS, "train")
    slowest = {name: x[:, -1:] for name, x in train.items()}
    trend = loss_statistics.normalise(slowest, means[:, :-1], _TRAIN_DECAYS[-1:], "train")
    known = loss_statistics.is_known(valid, "valid")
    valid_means = loss_statistics.corrected_mean(valid, _VALID_DECAYS, "valid")
    gap = loss_statistics.normalise(slowest, valid_means[:, -1:], _TRAIN_DECAYS[-1:], "train")
    gap = ops.where(ops.logical_and(known, loss_statistics.is_known(train, "train")), gap, 0.0)
    rise = loss_statistics.normalise(valid, valid_means[:, :1], _VALID_DECAYS, "valid")
    known = ops.cast(known, "float32")
    return ops.concatenate([surprise, trend, gap, known * rise, known], axis=1)


def _tensor_features(mean_square: Tensor, measured: Measured, count: Tensor) -> Tensor:
    """`[P, 11]`."""
    age = ops.cast(count, "float32")[:, None] + 1.0
    bias = 1.0 - ops.power(features.constant([_GRAD_DECAYS]), age)
    roots = measured.root_mean_squares
    grad_root, param_root, step_root = (roots[:, i : i + 1] for i in range(3))
    relative = ops.log(grad_root + 1e-12) - 0.5 * ops.log(mean_square / bias + 1e-24)
    logs = [grad_root, param_root, step_root / (param_root + 1e-8 * ops.rsqrt(measured.size))]
    cosine = measured.means[:, 3:] / (grad_root * step_root + 1e-12 / measured.size)
    rank, size = measured.rank, ops.log(measured.size) / 5.0 - 1.0
    constants = ops.stack([size, float(rank == 0), float(rank == 1), float(rank > 1)])
    return ops.concatenate(
        [
            ops.clip(relative, -5.0, 5.0),
            0.2 * features.clipped_log(ops.concatenate(logs, axis=1)),
            cosine,
            ops.ones_like(cosine) * constants,
        ],
        axis=1,
    )
