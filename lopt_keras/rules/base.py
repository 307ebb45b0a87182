"""The contract of an update rule: a pure function from gradients to steps."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lopt_keras.rules import step
from lopt_keras.signals import Signals
from lopt_keras.types import Array, Arrays, Shapes, Tensor, Tensors, Theta


class State(NamedTuple):
    """What an update rule remembers.

    Attributes:
        tensors: for each tensor, a dict of `[P, ...]` arrays.
        shared: dict of `[P, ...]` arrays that belong to no tensor.
    """

    tensors: Sequence[Tensors]
    shared: Tensors


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
        averages: whether a user should keep a running average of the parameters. Then
            `average_weight` gives the weight of the newest parameters in it.
        fuses_tensors: whether the rule steps with all tensors at once. Such a rule has its
            own `update` instead of the three parts, and all its state is shared.
    """

    signals: ClassVar[tuple[str, ...]] = ()
    mixes_tensors: ClassVar[bool] = False
    permutes_with_axes: ClassVar[bool] = True
    flattens: ClassVar[bool] = False
    state_follows_axes: ClassVar[bool] = True
    averages: ClassVar[bool] = False
    fuses_tensors: ClassVar[bool] = False

    @abc.abstractmethod
    def theta_shapes(self) -> Shapes:
        """The shape of each meta-parameter: dict from name to tuple."""

    @abc.abstractmethod
    def init_theta(self, seed: int = 0) -> Arrays:
        """A start value for meta-training: dict from name to float32 array."""

    @abc.abstractmethod
    def init_tensor_state(self, theta: Theta, param: Tensor, name: str) -> Tensors:
        """The state of one tensor before the first step.

        Args:
            theta: dict of `[P, ...]`.
            param: `[P, *shape]`.
            name: the tensor's name or path, `""` where it has none.

        Returns:
            Dict of `[P, ...]`; see `state_follows_axes`.
        """

    def init_shared_state(self, theta: Theta) -> Tensors:
        """The state that belongs to no tensor: dict of `[P, ...]`."""
        return {}

    def summarise(
        self, theta: Theta, state: Tensors, shared: Tensors, grad: Tensor, param: Tensor
    ) -> tuple[Tensors, Tensors]:
        """What the other tensors may know of one tensor.

        Returns:
            `(state, summary)`: the tensor's state as far as it is known now, and
            a dict of `[P, ...]` arrays of the same shape for every tensor.
        """
        raise NotImplementedError(f"{type(self).__name__} mixes no tensors")

    def coordinate(
        self, theta: Theta, shared: Tensors, summaries: Sequence[Tensors], signals: Signals
    ) -> tuple[Tensors, Sequence[Tensors]]:
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
    def update_tensor(
        self,
        theta: Theta,
        state: Tensors,
        message: Tensors,
        grad: Tensor,
        param: Tensor,
        signals: Signals,
    ) -> tuple[Tensor, Tensors]:
        """`(update, state)` of one tensor, from its state and its message."""

    def init_state(
        self, theta: Theta, params: Sequence[Tensor], names: Sequence[str] | None = None
    ) -> State:
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

    def average_weight(self, state: State) -> Tensor:
        """The weight of the newest parameters in their running average after a step, `[P]`.

        Args:
            state: the `State` after that step.
        """
        raise TypeError(f"{type(self).__name__} keeps no average")

    def update(
        self,
        theta: Theta,
        state: State,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        signals: Signals,
        names: Sequence[str] | None = None,
    ) -> tuple[list[Tensor], State]:
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

        def summarise(i: int) -> tuple[Tensors, Tensors]:
            return self.summarise(theta, state.tensors[i], state.shared, grads[i], params[i])

        def coordinate(summaries: Sequence[Tensors]) -> tuple[Tensors, Sequence[Tensors]]:
            return self.coordinate(theta, state.shared, summaries, signals)

        def update(i: int, tensor: Tensors | None, message: Tensors) -> tuple[Tensor, Tensors]:
            tensor = state.tensors[i] if tensor is None else tensor
            return self.update_tensor(theta, tensor, message, grads[i], params[i], signals)

        shared, pairs = step.take(self, len(params), summarise, coordinate, update)
        updates, tensors = zip(*pairs, strict=True)
        return list(updates), State(list(tensors), shared)

    def from_reference(self, arrays: Mapping[str, Any]) -> Arrays:
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

    def check_theta(self, theta: Any) -> Arrays:
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

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: np.asarray(value).tolist() for name, value in fields.items()}


def _check_entry(name: str, value: Any, shape: Sequence[int]) -> Array:
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
