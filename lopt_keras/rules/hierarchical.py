"""The hierarchical rule of Metz et al. 2020: an LSTM a tensor over an MLP a parameter."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from keras import ops

from lopt_keras import features, loss_statistics, networks, reductions, validation
from lopt_keras.rules import base

_TENSOR_STATISTICS, _LOSSES = 16, 2
_TRAIN_DECAYS, _VALID_DECAYS = (0.9,), (0.95,)
_CLIP_DECAY, _CLIP_FACTOR = 0.99, 10.0
_REFERENCE_NAMES = {
    "rnn_params/rnn/linear/": "lstm_",
    "rnn_to_ff_params/rnn_to_ff/": "lstm_to_mlp_",
    "rnn_to_in_params/rnn_to_in/": "lstm_to_lstm_",
    "lstm_init_state/": "initial_",
}


@dataclasses.dataclass(frozen=True)
class Hierarchical(base.UpdateRule):
    """An LSTM for every tensor that conditions an MLP for every parameter.

    The LSTM reads statistics of its tensor, the training and validation loss
    relative to their running mean, what the MLP sent up in the last step
    (its mean over the tensor), and the mean of what the LSTMs of all tensors sent.
    The MLP reads g, P, log |P|, momenta, second moments and their ratios, each
    second-moment normalised over the tensor, sines of the time, the sizes, and what
    its LSTM sends down. Its outputs d, m give the step
    `-step_mult * d * exp(exp_mult * m)`. Gradients are clipped relative to a running
    mean of their size over all tensors. Each observation of the validation loss
    advances the rule's time by one, as a step does.

    Theta: `lstm_w [inputs + lstm_size, 4 lstm_size]` and `lstm_b` (gates in the order
    input, candidate, forget, output), `lstm_to_mlp_*`, `lstm_to_lstm_*`, the linear
    maps of what it sends; `initial_hidden`, `initial_cell`, `initial_from_lstm`,
    `initial_from_mlp`; and `w0`, `b0`, ... of the MLP.

    State bytes per parameter: 8 for each of `decays` (40 by default).

    Args:
        hidden_size: units in each hidden layer (ReLU) of the MLP.
        hidden_layers: number of hidden layers of the MLP.
        step_mult: scale of the step.
        exp_mult: scale of the output m.
        lstm_size: units of the LSTM.
        lstm_to_mlp_size: values that the LSTM sends to the MLP.
        mlp_to_lstm_size: values that the MLP sends to the LSTM.
        lstm_to_lstm_size: values that the LSTMs send to each other.
        decays: of the accumulators of g and of g^2, each in [0, 1).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Metz et al., "Tasks, stability, architecture, and compute: training more
        effective learned optimizers", arXiv 2009.11243, section 3 and appendix.
    """

    signals: ClassVar[tuple[str, ...]] = ("train_loss", "validation_loss")
    mixes_tensors: ClassVar[bool] = True

    hidden_size: int = 32
    hidden_layers: int = 2
    step_mult: float = 0.001
    exp_mult: float = 0.001
    lstm_size: int = 64
    lstm_to_mlp_size: int = 17
    mlp_to_lstm_size: int = 16
    lstm_to_lstm_size: int = 18
    decays: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999, 0.9999)

    def __post_init__(self):
        validation.check_integer("hidden_layers", self.hidden_layers, low=1, high=16)
        sizes = ("hidden_size", "lstm_size", "lstm_to_mlp_size", "mlp_to_lstm_size")
        for name in (*sizes, "lstm_to_lstm_size"):
            validation.check_integer(name, getattr(self, name), low=1, high=4096)
        validation.check_number("step_mult", self.step_mult)
        validation.check_number("exp_mult", self.exp_mult)
        validation.check_decay_field(self, "decays")

    def theta_shapes(self):
        lstm_inputs = _TENSOR_STATISTICS + _LOSSES + self.mlp_to_lstm_size + self.lstm_to_lstm_size
        context = len(features.TIMESCALES) + 3 + self.lstm_to_mlp_size
        mlp_inputs = 3 + 4 * len(self.decays) + context
        hidden = [self.hidden_size] * self.hidden_layers
        return {
            "lstm_w": (lstm_inputs + self.lstm_size, 4 * self.lstm_size),
            "lstm_b": (4 * self.lstm_size,),
            "lstm_to_mlp_w": (self.lstm_size, self.lstm_to_mlp_size),
            "lstm_to_mlp_b": (self.lstm_to_mlp_size,),
            "lstm_to_lstm_w": (self.lstm_size, self.lstm_to_lstm_size),
            "lstm_to_lstm_b": (self.lstm_to_lstm_size,),
            "initial_hidden": (self.lstm_size,),
            "initial_cell": (self.lstm_size,),
            "initial_from_lstm": (self.lstm_to_lstm_size,),
            "initial_from_mlp": (self.mlp_to_lstm_size,),
            **networks.mlp_shapes([mlp_inputs, *hidden, 2 + self.mlp_to_lstm_size]),
        }

    def init_theta(self, seed=0):
        return networks.random_weights(self.theta_shapes(), seed)

    def from_reference(self, arrays):
        theta = {}
        for name, value in arrays.items():
            for published, ours in _REFERENCE_NAMES.items():
                name = name.replace(published, ours)
            for i in range(self.hidden_layers + 1):
                for kind in "wb":
                    name = name.replace(f"ffmod_params/mlp/~/linear_{i}/{kind}", f"{kind}{i}")
            initial = name in ("initial_hidden", "initial_cell")
            theta[name] = np.reshape(value, -1) if initial else value
        return self.check_theta(theta)

    def init_tensor_state(self, theta, param, name):
        particles, *shape = ops.shape(param)
        rank = len(shape)
        accumulator = ops.zeros((particles, len(self.decays), *shape), "float32")
        return {
            "m": accumulator,
            "rms": accumulator,
            "hidden": features.broadcast_over(theta["initial_hidden"], rank),
            "cell": features.broadcast_over(theta["initial_cell"], rank),
            "from_mlp": features.broadcast_over(theta["initial_from_mlp"], rank),
        }

    def init_shared_state(self, theta):
        particles = theta["initial_from_lstm"].shape[0]
        return {
            "from_lstm": ops.convert_to_tensor(theta["initial_from_lstm"]),
            "grad_scale": ops.full((particles, 1), 1.0 - _CLIP_DECAY, "float32"),
            "grad_count": ops.ones((particles, 1), "float32"),
            **loss_statistics.init(particles, _TRAIN_DECAYS, "train"),
            **loss_statistics.init(particles, _VALID_DECAYS, "valid"),
        }

    def summarise(self, theta, state, shared, grad, param):
        rank = len(param.shape) - 1
        grad = _clipped(grad, _grad_bound(shared))
        decays = features.broadcast_over(features.constant([self.decays]), rank)
        state = {
            **state,
            "m": features.accumulate(state["m"], grad[:, None], decays),
            "rms": features.accumulate(state["rms"], ops.square(grad)[:, None], decays),
        }
        summary = {
            "statistics": _tensor_statistics(state["m"], state["rms"], grad, param),
            "mean_square_grad": reductions.mean(ops.square(features.flat(grad)), 1),
            **{name: features.flat(state[name]) for name in ("hidden", "cell", "from_mlp")},
        }
        return state, summary

    def coordinate(self, theta, shared, summaries, signals):
        bound = _grad_bound(shared)
        shared, loss_features = _observe_losses(shared, signals)
        # All tensors side by side, as one batch for the LSTM: [P, N, ...].
        stacked = {name: ops.stack([s[name] for s in summaries], 1) for name in summaries[0]}
        hidden, cell = self._lstm(theta, stacked, shared["from_lstm"], loss_features)
        down = _linear(theta, "lstm_to_mlp", hidden)
        grad_scale = ops.sqrt(1e-8 + ops.mean(stacked["mean_square_grad"], axis=1))
        time = ops.cast(signals.step, "float32")[:, None] + shared["valid_count"]
        common = {
            "time": time,
            "grad_bound": bound,
            "log_num_tensors": ops.full(ops.shape(time), math.log(len(summaries)) - 1.0, "float32"),
        }
        messages = [
            {**common, "hidden": hidden[:, i], "cell": cell[:, i], "down": down[:, i]}
            for i in range(len(summaries))
        ]
        shared = {
            **shared,
            "from_lstm": ops.mean(_linear(theta, "lstm_to_lstm", hidden), axis=1),
            "grad_scale": features.accumulate(shared["grad_scale"], grad_scale, _CLIP_DECAY),
            "grad_count": shared["grad_count"] + 1.0,
        }
        return shared, messages

    def update_tensor(self, theta, state, message, grad, param, signals):
        rank = len(param.shape) - 1
        grad = _clipped(grad, message["grad_bound"])
        rsqrt = ops.rsqrt(state["rms"] + 1e-6)
        arrays = [state["m"], state["rms"], grad[:, None], param[:, None], rsqrt]
        norm = features.norm(param)[:, None]
        context = [
            features.sine_embedding(message["time"]),
            message["log_num_tensors"],
            ops.log(norm + 1e-8),
            ops.full_like(norm, math.log(math.prod(param.shape[1:]))),
            message["down"],
        ]
        outputs = networks.mlp_per_parameter(
            theta, _inputs, arrays, ops.concatenate(context, axis=1), self.hidden_layers
        )
        step = networks.scaled(-self.step_mult * outputs[:, 0], self.exp_mult * outputs[:, 1])
        sent = {name: message[name] for name in ("hidden", "cell")}
        sent["from_mlp"] = reductions.mean(outputs[:, 2:], 2)[:, :, 0]
        sent = {name: features.broadcast_over(value, rank) for name, value in sent.items()}
        return ops.reshape(step, ops.shape(param)), {"m": state["m"], "rms": state["rms"], **sent}

    def _lstm(self, theta, stacked, from_lstm, loss_features):
        """The new hidden and cell states, `[P, N, lstm_size]`."""
        num_tensors = stacked["hidden"].shape[1]

        def repeated(x):
            # The gradient of ops.repeat does not compile under XLA in a loop.
            return ops.stack([x] * num_tensors, axis=1)

        # In the order of the published weights: the losses stand before the variances.
        means, variances = stacked["statistics"][..., :-3], stacked["statistics"][..., -3:]
        inputs = [repeated(from_lstm), stacked["from_mlp"], means, repeated(loss_features)]
        inputs = ops.concatenate([*inputs, variances, stacked["hidden"]], axis=2)
        gates = _linear(theta, "lstm", inputs)
        enter, candidate, forget, leave = ops.split(gates, 4, axis=2)
        cell = ops.sigmoid(forget + 1.0) * stacked["cell"]
        cell = cell + ops.sigmoid(enter) * ops.tanh(candidate)
        return ops.sigmoid(leave) * ops.tanh(cell), cell


def _inputs(m, rms, g, p, rsqrt):
    return [g, p, ops.log(ops.abs(p) + 1e-8), m, rms, m * rsqrt, rsqrt]


def _tensor_statistics(m, rms, grad, param):
    """What the LSTM reads of its tensor, `[P, 16]`; the three variances stand last."""
    shape = [*param.shape[1:], 1, 1, 1, 1][:4]
    constants = [1.0 if len(param.shape) == 1 else -1.0, *(math.log(size) - 1.0 for size in shape)]
    moments = [features.moments(x) for x in (m, rms, param)]
    (mean_m, var_m), (mean_rms, var_rms), (mean_param, var_param) = moments
    norm = features.norm(param)
    is_scalar, *log_shape = [ops.full_like(norm, constant) for constant in constants]
    statistics = [
        features.clipped_log(features.norm(grad)),
        is_scalar,
        features.clipped_log(mean_m),
        ops.sign(mean_m),
        features.clipped_log(mean_rms),
        ops.sign(mean_rms),
        features.clipped_log(mean_param),
        ops.sign(mean_param),
        features.clipped_log(norm),
        *log_shape,
        *(features.clipped_log(variance) for variance in (var_m, var_rms, var_param)),
    ]
    return ops.stack(statistics, axis=1)


def _observe_losses(shared, signals):
    """The shared state after this step's losses, and the two features of them, `[P, 2]`.

    The validation loss is seen relative to the training loss; before the first it
    is zero, as published. A training loss that is not known is as expected.
    """
    valid = loss_statistics.observe(shared, signals.validation_loss, _VALID_DECAYS, "valid")
    train = loss_statistics.observe(shared, signals.train_loss, _TRAIN_DECAYS, "train")
    valid_mean = loss_statistics.corrected_mean(valid, _VALID_DECAYS, "valid")
    expected = loss_statistics.corrected_mean(train, _TRAIN_DECAYS, "train")
    heard = signals.train_loss
    loss = ops.where(heard.known[:, None], heard.value[:, None], expected)
    losses = ops.concatenate([loss, valid_mean], axis=1)
    losses = loss_statistics.normalise(train, losses, _TRAIN_DECAYS, "train")
    return {**shared, **train, **valid}, losses


def _grad_bound(shared):
    """`[P, 1]`: ten times the running mean of the gradients' size."""
    bias = 1.0 - ops.power(_CLIP_DECAY, shared["grad_count"])
    return _CLIP_FACTOR * shared["grad_scale"] / bias


def _clipped(grad, bound):
    bound = ops.reshape(bound, (-1, *(1,) * (len(grad.shape) - 1)))
    return ops.clip(grad, -bound, bound)


def _linear(theta, name, x):
    """`[P, N, F]` -> `[P, N, units]`."""
    return ops.matmul(x, theta[f"{name}_w"]) + theta[f"{name}_b"][:, None]
