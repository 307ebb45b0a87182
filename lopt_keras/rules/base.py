"""The contract of an update rule: a pure function from gradients to steps."""

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
from keras import ops


class Signal(NamedTuple):
    """A number that is not always known.

    Attributes:
        value: `[P]` float32, finite; 0 where it is not known.
        known: `[P]` booleans.
    """

    value: Any
    known: Any

    @classmethod
    def where(cls, known, value):
        """A value that is known where a condition holds and it is finite."""
        known = ops.logical_and(known, ops.isfinite(value))
        return cls(ops.where(known, value, 0.0), known)


class Signals(NamedTuple):
    """What an update rule hears besides gradients and parameters.

    Attributes:
        step: `[P]` integers, steps taken so far, counted from 0.
        total_steps: `Signal`, the planned number of steps. Not known any more when that
            many have been taken: training beyond a horizon is training without one.
        train_loss: `Signal`, the loss that the gradients are of.
        validation_loss: `Signal`, a loss on held-out data measured since the last step.
    """

    step: Any
    total_steps: Any
    train_loss: Any
    validation_loss: Any

    @classmethod
    def silent(cls, step, **heard):
        """Signals of which only the step, and what is given, is known.

        Args:
            step: `[P]` integers.
            **heard: `Signal`s, or `[P]` float32, known where they are finite.
        """
        zeros, nowhere = ops.zeros(ops.shape(step), "float32"), ops.zeros(ops.shape(step), "bool")
        signals = {name: Signal(zeros, nowhere) for name in cls._fields[1:]}
        for name, x in heard.items():
            signals[name] = x if isinstance(x, Signal) else Signal.where(True, x)
        total, known = signals["total_steps"]
        ahead = ops.cast(step, "float32") < total
        signals["total_steps"] = Signal.where(ops.logical_and(known, ahead), total)
        return cls(step, **signals)


class State(NamedTuple):
    """What an update rule remembers.

    Attributes:
        tensors: for each tensor, a dict of `[P, ...]` arrays.
        shared: dict of `[P, ...]` arrays that belong to no tensor.
    """

    tensors: Any
    shared: Any


@dataclasses.dataclass(frozen=True)
class UpdateRule(abc.ABC):
    """A rule that turns gradients into steps, with meta-parameters theta.

    A rule is a frozen dataclass: its fields are the hyperparameters that
    meta-training leaves alone, and what serialization keeps. It holds no
    variables. Every array it is given or returns, theta included, carries a
    leading particle axis P, except those of `init_theta`, `from_reference` and
    `check_theta`, which describe a single theta.

    A step has three parts, so that each tensor can be compiled on its own:

    1. `summarise`, for each tensor, if the rule `mixes_tensors`;
    2. `coordinate`, once, from all summaries and the shared state;
    3. `update_tensor`, for each tensor.

    Every rule implements `theta_shapes`, `init_theta`, `init_tensor_state` and
    `update_tensor`; one with shared state also `init_shared_state` and
    `coordinate`; one that mixes information between tensors `summarise` too.

    Attributes:
        signals: names of the `Signals` that the rule makes use of, besides `step`.
        mixes_tensors: whether the update of a tensor depends on the others.
        permutes_with_axes: whether a tensor with its axes permuted gets the same
            update with its axes permuted.
        flattens: whether a tensor of rank 3 and more gets the update of the matrix of
            all its axes but the last by the last.
        state_follows_axes: whether each entry of a tensor's state ends with the tensor's own
            axes, each as long as the tensor's or of size 1.
        averages: whether what is worth keeping is a running average of the parameters, of
            which `average_weight` tells the weight of the newest.
        fuses_tensors: whether the rule steps with all tensors at once: it has no three
            parts but an `update` of its own, and all its state is shared.
    """

    signals: ClassVar[tuple[str, ...]] = ()
    mixes_tensors: ClassVar[bool] = False
    permutes_with_axes: ClassVar[bool] = True
    flattens: ClassVar[bool] = False
    state_follows_axes: ClassVar[bool] = True
    averages: ClassVar[bool] = False
    fuses_tensors: ClassVar[bool] = False

    @abc.abstractmethod
    def theta_shapes(self):
        """The shape of each meta-parameter: dict from name to tuple."""

    @abc.abstractmethod
    def init_theta(self, seed=0):
        """A start value for meta-training: dict from name to float32 array."""

    @abc.abstractmethod
    def init_tensor_state(self, theta, param, name):
        """The state of one tensor before the first step.

        Args:
            theta: dict of `[P, ...]`.
            param: `[P, *shape]`.
            name: the tensor's name or path, `""` where it has none.

        Returns:
            Dict of `[P, ...]`; see `state_follows_axes`.
        """

    def init_shared_state(self, theta):
        """The state that belongs to no tensor: dict of `[P, ...]`."""
        return {}

    def summarise(self, theta, state, shared, grad, param):
        """What the other tensors are to know of one tensor.

        Returns:
            `(state, summary)`: the tensor's state as far as it is known now, and
            a dict of `[P, ...]` arrays of the same shape for every tensor.
        """
        raise NotImplementedError(f"{type(self).__name__} mixes no tensors")

    def coordinate(self, theta, shared, summaries, signals):
        """What concerns all tensors.

        Args:
            theta: dict of `[P, ...]`.
            shared: the shared state.
            summaries: list with what `summarise` gave for each tensor, or with
                empty dicts, if the rule does not mix tensors.
            signals: `Signals`.

        Returns:
            `(shared, messages)`: the new shared state and for each tensor a dict
            of `[P, ...]` arrays.
        """
        return shared, [{}] * len(summaries)

    @abc.abstractmethod
    def update_tensor(self, theta, state, message, grad, param, signals):
        """`(update, state)` of one tensor, from its state and its message."""

    def init_state(self, theta, params, names=None):
        """The `State` before the first step.

        Args:
            theta: dict of `[P, ...]`.
            params: list of `[P, *shape]`.
            names: a name for each, or None. A rule may treat embeddings by theirs.
        """
        names = names or [""] * len(params)
        tensors = [
            self.init_tensor_state(theta, param, name)
            for param, name in zip(params, names, strict=True)
        ]
        return State(tensors, self.init_shared_state(theta))

    def average_weight(self, state):
        """The weight of the newest parameters in their running average after a step, `[P]`.

        Args:
            state: the `State` after that step.
        """
        raise TypeError(f"{type(self).__name__} keeps no average")

    def update(self, theta, state, grads, params, signals, names=None):
        """One step for all tensors.

        Args:
            theta: dict of `[P, ...]`.
            state: as `init_state` or the previous `update` returned it.
            grads, params: lists of `[P, *shape]`, float32.
            signals: `Signals`.
            names: as for `init_state`.

        Returns:
            `(updates, state)`. The caller adds the updates to the params.
        """
        tensors, summaries = state.tensors, [{}] * len(params)
        if self.mixes_tensors:
            pairs = [
                self.summarise(theta, tensor, state.shared, grad, param)
                for tensor, grad, param in zip(tensors, grads, params, strict=True)
            ]
            tensors, summaries = zip(*pairs, strict=True)
        shared, messages = self.coordinate(theta, state.shared, summaries, signals)
        pairs = [
            self.update_tensor(theta, tensor, message, grad, param, signals)
            for tensor, message, grad, param in zip(tensors, messages, grads, params, strict=True)
        ]
        updates, tensors = zip(*pairs, strict=True)
        return list(updates), State(list(tensors), shared)

    def from_reference(self, arrays):
        """Theta from arrays under the published implementation's names.

        Args:
            arrays: dict from the published name to an array.

        Returns:
            Theta, checked: dict from our name to float32 array.

        Raises:
            ValueError: if the rule has no published implementation, or the
                arrays are not those of this configuration.
        """
        raise ValueError(f"{type(self).__name__} has no published implementation to read from.")

    def check_theta(self, theta):
        """Theta as float32 arrays, if it is one of this rule's.

        Args:
            theta: dict from name to array (or nested lists of numbers).

        Raises:
            TypeError: if theta is not a dict or an entry does not hold real numbers.
            ValueError: if names or shapes are not the rule's, or a value is not finite.
        """
        if not isinstance(theta, dict):
            raise TypeError(f"theta must be a dict from name to array. Received: {type(theta)}")
        shapes = self.theta_shapes()
        if set(theta) != set(shapes):
            raise ValueError(
                f"theta does not fit {self}: missing {sorted(set(shapes) - set(theta))}, "
                f"unexpected {sorted(set(theta) - set(shapes), key=str)}, "
                f"expected {sorted(shapes)}."
            )
        return {name: _check_entry(name, theta[name], shape) for name, shape in shapes.items()}

    def get_config(self):
        """The constructor's arguments, as JSON can hold them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: np.asarray(value).tolist() for name, value in fields.items()}


def _check_entry(name, value, shape):
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"theta[{name!r}] must hold real numbers. Received dtype: {array.dtype}")
    if array.shape != tuple(shape):
        raise ValueError(f"theta[{name!r}] must have shape {shape}. Received shape: {array.shape}")
    with np.errstate(over="ignore"):  # Becomes an infinity, which is refused below.
        array = array.astype("float32")
    if not np.isfinite(array).all():
        raise ValueError(f"theta[{name!r}] must be finite in float32. Received a NaN or infinity.")
    return array


def check_integer(name, value, low, high=math.inf):
    """Raises unless `value` is an integer in `[low, high]`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be in [{low}, {high}]. Received: {name}={value!r}")


def check_number(name, value, low=0.0, high=math.inf, low_open=False):
    """Raises unless `value` is a finite number in `[low, high)`, or `(low, high)` if `low_open`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (low < value < high or (value == low and not low_open)):
        interval = f"{'(' if low_open else '['}{low}, {high})"
        raise ValueError(f"`{name}` must be in {interval}. Received: {name}={value!r}")


def check_bool(name, value):
    """Raises unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool. Received: {name}={value!r}")


def check_decay_field(rule, name):
    """Makes a field of a rule a tuple of floats; raises unless each is in [0, 1)."""
    value = getattr(rule, name)
    if isinstance(value, str) or not np.iterable(value):
        raise TypeError(f"`{name}` must be a sequence of numbers. Received: {name}={value!r}")
    value = tuple(value)
    if not value:
        raise ValueError(f"`{name}` must hold at least one decay. Received: {name}={value!r}")
    for decay in value:
        check_number(name, decay, high=1.0)
    object.__setattr__(rule, name, tuple(float(decay) for decay in value))


def check_decay_counts(rule):
    """Checks `rms_decays` and `factored_decays` of a rule, against its `momentum_decays`."""
    check_decay_field(rule, "rms_decays")
    check_decay_field(rule, "factored_decays")
    momenta = len(rule.momentum_decays)
    if len(rule.rms_decays) not in (1, momenta):
        raise ValueError(
            f"`rms_decays` must hold 1 or {momenta} decays (as many as `momentum_decays`). "
            f"Received: rms_decays={rule.rms_decays}"
        )
    if len(rule.factored_decays) != momenta:
        raise ValueError(
            f"`factored_decays` must hold {momenta} decays (as many as `momentum_decays`). "
            f"Received: factored_decays={rule.factored_decays}"
        )
