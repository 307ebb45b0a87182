"""The contract of an update rule: a pure function from gradients to steps."""

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import numpy as np


class Signals(NamedTuple):
    """What an update rule hears besides gradients and parameters.

    Attributes:
        step: `[P]` integers, steps taken so far, counted from 0.
        total_steps: the planned number of steps, an int, or None if not known.
    """

    step: Any
    total_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class UpdateRule(abc.ABC):
    """A rule that turns gradients into steps, with meta-parameters theta.

    A rule is a frozen dataclass: its fields are the hyperparameters that
    meta-training leaves alone, and what serialization keeps. It holds no
    variables. Every array it is given or returns, theta included, carries a
    leading particle axis P, except those of `init_theta`, `from_reference` and
    `check_theta`, which describe a single theta.

    A rule that treats each tensor on its own implements `theta_shapes`,
    `init_theta`, `init_tensor_state` and `update_tensor`. A rule that mixes
    information between tensors says so in `mixes_tensors`, and overrides
    `init_state` and `update` instead of the last two.

    Attributes:
        mixes_tensors: whether the update of a tensor depends on the others. If
            not, `update` may be called for each on its own.
    """

    mixes_tensors: ClassVar[bool] = False

    @abc.abstractmethod
    def theta_shapes(self):
        """The shape of each meta-parameter: dict from name to tuple."""

    @abc.abstractmethod
    def init_theta(self, seed=0):
        """A start value for meta-training: dict from name to float32 array."""

    def init_state(self, theta, params):
        """The state before the first step.

        Args:
            theta: dict of `[P, ...]`.
            params: list of `[P, *shape]`.

        Returns:
            A list with a dict of `[P, ...]` arrays for each tensor.
        """
        return [self.init_tensor_state(theta, param) for param in params]

    def update(self, theta, state, grads, params, signals):
        """One step for all tensors.

        Args:
            theta: dict of `[P, ...]`.
            state: as `init_state` or the previous `update` returned it.
            grads, params: lists of `[P, *shape]`, float32.
            signals: `Signals`.

        Returns:
            `(updates, state)`. The caller adds the updates to the params.
        """
        pairs = [
            self.update_tensor(theta, tensor_state, grad, param, signals)
            for tensor_state, grad, param in zip(state, grads, params, strict=True)
        ]
        updates, state = zip(*pairs, strict=True)
        return list(updates), list(state)

    def init_tensor_state(self, theta, param):
        """The state of one tensor: dict of `[P, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither init_state nor this")

    def update_tensor(self, theta, state, grad, param, signals):
        """`(update, state)` of one tensor."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither update nor this")

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
        return {
            name: np.asarray(value).tolist() for name, value in dataclasses.asdict(self).items()
        }


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


def check_decays(name, value):
    """The decays as a tuple of floats; raises unless each is in [0, 1)."""
    if isinstance(value, str) or not np.iterable(value):
        raise TypeError(f"`{name}` must be a sequence of numbers. Received: {name}={value!r}")
    value = tuple(value)
    if not value:
        raise ValueError(f"`{name}` must hold at least one decay. Received: {name}={value!r}")
    for decay in value:
        check_number(name, decay, high=1.0)
    return tuple(float(decay) for decay in value)
