"""A small network that reads how a tensor's training goes, once a step."""

import dataclasses
import math

from keras import ops

from lopt_keras import features, loss_statistics, networks
from lopt_keras.rules import base

SIGNALS = ("train_loss", "validation_loss", "total_steps")
"""What a controller hears."""

_TRAIN_DECAYS, _VALID_DECAYS = (0.9, 0.99, 0.999), (0.5, 0.9)
_GRAD_DECAYS = (0.9, 0.99, 0.999)
_LOSS_FEATURES = 9
_TENSOR_FEATURES = 8 + len(_GRAD_DECAYS)


@dataclasses.dataclass(frozen=True)
class Controller:
    """An MLP that reads time, horizon, losses and statistics of one tensor.

    Its features, all of the order of 1 and most of them free of the scale of the
    loss:

    - `tanh(t / c - 1)`, as `features.time_embedding`, and the share of the horizon
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

    def __post_init__(self):
        base.check_integer("hidden_size", self.hidden_size, low=1, high=4096)
        base.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)

    def theta_shapes(self):
        inputs = len(features.TIMESCALES) + 2 + _LOSS_FEATURES + _TENSOR_FEATURES
        hidden = [self.hidden_size] * self.hidden_layers
        return networks.mlp_shapes([inputs, *hidden, self.outputs], self.prefix)

    def init_theta(self, seed):
        """Random, but for the last layer: the outputs start at zero."""
        theta = networks.random_weights(self.theta_shapes(), seed)
        theta[f"{self.prefix}w{self.hidden_layers}"][:] = 0.0
        return theta

    def init_shared_state(self, particles):
        """Statistics of the losses: dict of `[P, ...]`."""
        return {
            **loss_statistics.init(particles, _TRAIN_DECAYS, "train"),
            **loss_statistics.init(particles, _VALID_DECAYS, "valid"),
        }

    def init_tensor_state(self, param):
        """Running means of g^2: dict of `[P, ..., *ones]`."""
        particles, rank = param.shape[0], len(param.shape) - 1
        return {"mean_square": ops.zeros((particles, len(_GRAD_DECAYS), *(1,) * rank), "float32")}

    def listen(self, shared, signals):
        """`(shared, heard)`: the new statistics, and the features that all tensors share."""
        train = loss_statistics.observe(shared, signals.train_loss, _TRAIN_DECAYS, "train")
        valid = loss_statistics.observe(shared, signals.validation_loss, _VALID_DECAYS, "valid")
        heard = [features.time_embedding(signals.step), horizon(signals)]
        heard += [_loss_features(train, valid, signals.train_loss)]
        return {**train, **valid}, ops.concatenate(heard, axis=1)

    def __call__(self, theta, state, heard, grad, param, step, signals):
        """The outputs `[P, outputs]` for one tensor, and its new state.

        Args:
            theta: dict of `[P, ...]`.
            state: as `init_tensor_state` or the last call returned it.
            heard: from `listen`.
            grad, param: `[P, *shape]`.
            step: `[P, *shape]`, the step as it would be.
            signals: `Signals`.
        """
        rank = len(param.shape) - 1
        mean_square = features.accumulate(
            ops.reshape(state["mean_square"], (-1, len(_GRAD_DECAYS))),
            ops.mean(ops.square(features.flat(grad)), axis=1)[:, None],
            features.constant([_GRAD_DECAYS]),
        )
        statistics = _tensor_features(mean_square, grad, param, step, signals.step)
        inputs = ops.concatenate([heard, statistics], axis=1)
        outputs = networks.mlp(theta, inputs, self.hidden_layers, self.prefix)
        return outputs, {"mean_square": features.broadcast_over(mean_square, rank)}


def horizon(signals):
    """The share of the planned steps that has passed, and whether it is known: `[P, 2]`."""
    known = ops.isfinite(signals.total_steps)
    total = ops.where(known, signals.total_steps, 1.0)
    share = ops.clip(ops.cast(signals.step, "float32") / total, 0.0, 1.0)
    known = ops.cast(known, "float32")
    return ops.stack([share * known, known], axis=1)


def _loss_features(train, valid, loss):
    """`[P, 9]`, zero where nothing is known."""
    means = loss_statistics.corrected_mean(train, _TRAIN_DECAYS, "train")
    loss = loss[:, None]
    loss = ops.where(ops.isfinite(loss), loss, means)
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


def _tensor_features(mean_square, grad, param, step, count):
    """`[P, 11]`."""
    rank = len(param.shape) - 1
    # Not `param.shape`: in the signatures of an export, sizes are not known.
    size = ops.cast(math.prod(ops.shape(param)[1:]), "float32")
    age = ops.cast(count, "float32")[:, None] + 1.0
    bias = 1.0 - ops.power(features.constant([_GRAD_DECAYS]), age)
    grad_norm, param_norm, step_norm = (features.norm(x) for x in (grad, param, step))
    grad_rms, param_rms = grad_norm * ops.rsqrt(size), param_norm * ops.rsqrt(size)
    relative = ops.log(grad_rms + 1e-12)[:, None] - 0.5 * ops.log(mean_square / bias + 1e-24)
    cosine = ops.sum(features.flat(grad) * features.flat(step), axis=1)
    cosine = cosine / (grad_norm * step_norm + 1e-12)
    constants = (ops.log(size) / 5.0 - 1.0, float(rank == 0), float(rank == 1), float(rank > 1))
    single = [
        0.2 * features.clipped_log(grad_rms),
        0.2 * features.clipped_log(param_rms),
        0.2 * features.clipped_log(step_norm / (param_norm + 1e-8)),
        cosine,
        *(ops.ones_like(cosine) * constant for constant in constants),
    ]
    return ops.concatenate([ops.clip(relative, -5.0, 5.0), ops.stack(single, axis=1)], axis=1)
