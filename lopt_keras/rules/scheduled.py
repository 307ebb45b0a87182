"""A learned step size for each tensor, on top of any rule."""

import dataclasses
from typing import Any

from keras import ops

from lopt_keras import controller, validation
from lopt_keras.rules import base, registry

_RULE = "rule_"


@dataclasses.dataclass(frozen=True)
class Scheduled(base.UpdateRule):
    """Multiplies the steps of a rule by a learned factor for each tensor and step.

    The factor is `step_mult * exp(exp_mult * tanh(o))`, with o the output of a
    `controller.Controller`, which reads time, horizon, losses, and the norms of
    gradient, parameter and step. Untrained it is `step_mult`. A normalised rule,
    whose steps all have one size, needs this to be free of hyperparameters.

    Theta: that of the rule, each name after `rule_`, and `schedule_w0`, `schedule_b0`,
    ..., the layers of the controller.

    State: that of the rule, and 3 numbers for each tensor.

    A controller that was meta-trained with validation losses works badly without them, and
    in `fit` they come only by a callback: `uses_validation_loss=False` is for weights that
    are to serve where nobody tells them.

    Args:
        rule: an `UpdateRule`, its name, or its serialized form.
        hidden_size: units in each hidden layer (ReLU) of the controller.
        hidden_layers: number of hidden layers of the controller.
        step_mult: scale of the factor.
        exp_mult: the logarithm of the largest change of the factor, up or down.
        anneal: whether the factor also falls linearly to zero over the planned steps,
            where they are known.
        decay_steps: if given, the factor also falls as `1 / (1 + t / decay_steps)` where
            the planned steps are not known, t being the steps taken so far.
        min_parameter_scale: if given, steps are in units of the tensor's own size: the factor
            is also multiplied by the root mean square of its entries, but by no less
            than this, so that what starts at zero moves.
        max_parameter_scale: if given, at least `min_parameter_scale`, and that factor is no more than
            this, so that scales of normalisations, which are 1, do not move by leaps.
        uses_validation_loss: whether the controller reads the validation loss.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        The separation of a rule and its schedule follows Celo (Moudgil et al., arXiv
        2501.12670, section 4), whose scheduler is an LSTM. Relative steps: Shazeer and
        Stern, arXiv 1804.04235, section 8.
    """

    rule: Any = "normalized_mlp"
    hidden_size: int = 16
    hidden_layers: int = 2
    step_mult: float = 1.0
    exp_mult: float = 7.0
    anneal: bool = False
    decay_steps: float | None = None
    min_parameter_scale: float | None = None
    max_parameter_scale: float | None = None
    uses_validation_loss: bool = True

    def __post_init__(self):
        object.__setattr__(self, "rule", registry.get(self.rule))
        object.__setattr__(
            self,
            "_controller",
            controller.Controller("schedule_", 1, self.hidden_size, self.hidden_layers),
        )
        validation.check_number("step_mult", self.step_mult)
        validation.check_number("exp_mult", self.exp_mult)
        validation.check_bool("anneal", self.anneal)
        validation.check_bool("uses_validation_loss", self.uses_validation_loss)
        for name in ("decay_steps", "min_parameter_scale"):
            if getattr(self, name) is not None:
                validation.check_number(name, getattr(self, name), low_open=True)
        if self.max_parameter_scale is not None:
            if self.min_parameter_scale is None:
                raise ValueError(
                    "`max_parameter_scale` needs a `min_parameter_scale`. "
                    f"Received: max_parameter_scale={self.max_parameter_scale}, min_parameter_scale=None"
                )
            validation.check_number(
                "max_parameter_scale", self.max_parameter_scale, low=self.min_parameter_scale
            )

    @property
    def signals(self):
        own = [
            signal
            for signal in controller.SIGNALS
            if self.uses_validation_loss or signal != "validation_loss"
        ]
        return tuple(dict.fromkeys((*self.rule.signals, *own)))

    @property
    def mixes_tensors(self):
        return self.rule.mixes_tensors

    @property
    def permutes_with_axes(self):
        return self.rule.permutes_with_axes

    @property
    def flattens(self):
        return self.rule.flattens

    def theta_shapes(self):
        inner = {_RULE + name: shape for name, shape in self.rule.theta_shapes().items()}
        return {**inner, **self._controller.theta_shapes()}

    def init_theta(self, seed=0):
        inner = {_RULE + name: value for name, value in self.rule.init_theta(seed).items()}
        return {**inner, **self._controller.init_theta(seed)}

    def init_tensor_state(self, theta, param, name):
        inner = self.rule.init_tensor_state(_of_rule(theta), param, name)
        return {**_named(inner), **self._controller.init_tensor_state(param)}

    def init_shared_state(self, theta):
        inner = self.rule.init_shared_state(_of_rule(theta))
        particles = theta["schedule_b0"].shape[0]
        return {**_named(inner), **self._controller.init_shared_state(particles)}

    def summarise(self, theta, state, shared, grad, param):
        inner, summary = self.rule.summarise(
            _of_rule(theta), _of_rule(state), _of_rule(shared), grad, param
        )
        return {**state, **_named(inner)}, summary

    def coordinate(self, theta, shared, summaries, signals):
        inner, messages = self.rule.coordinate(
            _of_rule(theta), _of_rule(shared), summaries, signals
        )
        own, heard = self._controller.listen(theta, shared, signals)
        messages = [{**_named(message), "heard": heard} for message in messages]
        return {**_named(inner), **own}, messages

    def update_tensor(self, theta, state, message, grad, param, signals):
        update, inner = self.rule.update_tensor(
            _of_rule(theta), _of_rule(state), _of_rule(message), grad, param, signals
        )
        measured = controller.measure(grad, param, update)
        output, own = self._controller(theta, state, message["heard"], measured, signals)
        factor = self.step_mult * ops.exp(self.exp_mult * ops.tanh(output[:, 0]))
        fraction, known = ops.unstack(controller.horizon(signals), axis=1)
        if self.anneal:
            factor = factor * (1.0 - fraction)
        if self.decay_steps is not None:
            step = ops.cast(signals.step, "float32")
            factor = factor * ops.where(known > 0, 1.0, 1.0 / (1.0 + step / self.decay_steps))
        if self.min_parameter_scale is not None:
            factor = factor * self._scale(measured.root_mean_squares[:, 1])
        factor = ops.reshape(factor, (-1, *(1,) * (len(param.shape) - 1)))
        return factor * update, {**_named(inner), **own}

    def _scale(self, root_mean_square):
        scale = ops.maximum(root_mean_square, self.min_parameter_scale)
        return (
            scale
            if self.max_parameter_scale is None
            else ops.minimum(scale, self.max_parameter_scale)
        )

    def get_config(self):
        return {**super().get_config(), "rule": registry.serialize(self.rule)}


def _named(arrays):
    """The rule's own entries of a dict that holds the controller's too."""
    return {_RULE + name: value for name, value in arrays.items()}


def _of_rule(arrays):
    return {
        name.removeprefix(_RULE): value for name, value in arrays.items() if name.startswith(_RULE)
    }
