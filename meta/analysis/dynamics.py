"""An update rule as a dynamical system: the state of one tensor, driven by gradients."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras import rules
from lopt_keras.rules.base import State
from lopt_keras.types import Array, Tensor
from lopt_keras.validation import check_integer, check_number
from meta.analysis import programs
from meta.analysis.subject import Subject

_LARGEST_STATE = 2048
_PARAMETER_SIZE = 0.1
_PATTERN_SEED = 0
_MOST_PATTERNS = 8


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """The map `h <- F(h, g)` and the step `u(h, g)` of a rule, for one tensor.

    The state h is a vector: all floating-point entries of the rule's state, that of the tensor
    and that which is shared. The gradient g is the same number in every entry of the tensor. The
    parameters stand still, and so does the time t, unless told otherwise.

    With `noise` s, F and u are means over gradients `g + s z`, z being a few patterns of signs
    whose mean is zero: what a rule does on average under noise of size s. At s = 0 an Adam has no
    second moment, and its rate is that of its epsilon; no training is there.

    Args:
        subject: `Subject`.
        shape: of the tensor. `()` is a single parameter: for rules that treat each parameter
            alike.
        step: t, steps taken so far, that the rule hears.
        total_steps: what it is told of the horizon, 0 for nothing.
        loss: the training loss that it hears, always the same; None for silence. A rule that
            counts the losses that it hears has no fixed point.
        noise: s.
        parameter: the value of every entry of the parameters; by default they are normal with
            standard deviation 0.1.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Maheswaranathan et al., arXiv 2011.02159, section 3; the means under noise are ours.
    """

    # Of the fields of an instance.
    size: ClassVar[int]
    _structure: ClassVar[State]
    _sizes: ClassVar[list[int]]
    _programs: ClassVar[dict[tuple[str, int], Any]]

    subject: Subject
    shape: tuple[int, ...] = ()
    step: int = 10_000
    total_steps: int = 0
    loss: float | None = None
    noise: float = 0.0
    parameter: float | None = None

    def __post_init__(self) -> None:
        check_integer("step", self.step, low=0)
        check_integer("total_steps", self.total_steps, low=0)
        check_number("noise", self.noise)
        structure = self.subject.rule.init_state(self.subject.copies(1), self._parameters(1))
        flat = tf.nest.flatten(structure)
        sizes = [int(np.prod(x.shape[1:])) if x.dtype.is_floating else 0 for x in flat]
        if not 0 < sum(sizes) <= _LARGEST_STATE:
            raise ValueError(
                f"The state of {self.subject.name} for a tensor of shape {self.shape} must have 1 "
                f"to {_LARGEST_STATE} numbers. It has {sum(sizes)}."
            )
        object.__setattr__(self, "_structure", structure)
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "size", sum(sizes))
        object.__setattr__(self, "_programs", {})

    def at(self, **changes: Any) -> "Dynamics":
        """The same system with other arguments."""
        return dataclasses.replace(self, **changes)

    def start(self) -> Array:
        """The state before the first step, `[size]`."""
        return self.flatten(self._structure)[0]

    def flatten(self, state: State) -> Array:
        """A `State` of `[N, ...]` as `[N, size]`, NumPy."""
        floats = [
            np.asarray(x).reshape(len(x), -1)
            for x, size in zip(tf.nest.flatten(state), self._sizes, strict=True)
            if size
        ]
        return np.concatenate(floats, axis=1)

    def entries(self) -> list[str]:
        """A name for each number of the state: list."""
        parts = [*self._structure.tensors, self._structure.shared]
        names = [name for part in parts for name in sorted(part)]
        return [name for name, size in zip(names, self._sizes, strict=True) for _ in range(size)]

    def __call__(self, states: Array, gradients: Any, steps: Any = None) -> tuple[Array, ...]:
        """One step from each of N states.

        Args:
            states: `[N, size]`.
            gradients: `[N]`, or a number.
            steps: `[N]` or an integer: t, instead of `step`.

        Returns:
            New states `[N, size]` and the step of the first entry, `[N]`.
        """
        return self._run("step", states, gradients, steps)

    def jacobians(self, states: Array, gradients: Any, steps: Any = None) -> tuple[Array, ...]:
        """Derivatives at each of N states, by tape through the rule's `update`.

        Returns:
            dF/dh `[N, size, size]`, dF/dg `[N, size]`, du/dh `[N, size]`, du/dg `[N]`. The
            gradient moves in the first entry alone, and u is the step of that entry.
        """
        return self._run("jacobian", states, gradients, steps)

    def decay(self, states: Array, gradients: Any, steps: Any = None) -> Array:
        """What a step takes away of a parameter, as a fraction: `[N]`.

        `-trace(du/dP) / entries`, by tape: the state and the gradient stay, the parameters move.
        """
        return self._run("decay", states, gradients, steps)[0]

    def run(
        self, gradients: Array, start: Array | None = None, steps: Any = None
    ) -> tuple[Array, Array]:
        """Many steps from one state.

        Args:
            gradients: `[T]`.
            start: `[size]`; by default the state before the first step.
            steps: `[T]`, the times; by default `step` for all.

        Returns:
            The states after each step `[T, size]` and the steps `[T]`.
        """
        state = (self.start() if start is None else np.asarray(start))[None]
        states, updates = [], []
        for i, gradient in enumerate(gradients):
            state, update = self(state, gradient, None if steps is None else steps[i])
            states.append(state[0])
            updates.append(update[0])
        return np.stack(states), np.stack(updates)

    def settle(
        self, gradient: float = 0.0, num_steps: int = 200, start: Array | None = None
    ) -> Array:
        """The state after many steps with one gradient, `[size]`."""
        return self.run(np.full(num_steps, gradient), start)[0][-1]

    def _run(self, name: str, states: Array, gradients: Any, steps: Any) -> tuple[Array, ...]:
        states = np.asarray(states, "float32")
        count = len(states)
        gradients = np.broadcast_to(np.asarray(gradients, "float32"), [count])
        steps = np.broadcast_to(self.step if steps is None else steps, [count]).astype("int32")
        arguments = [tf.constant(x) for x in (states, gradients, steps)]
        if (name, count) not in self._programs:
            functions = {"step": self._step, "jacobian": self._jacobian, "decay": self._decay}
            self._programs[name, count] = programs.traced(functions[name], *arguments)
        return tuple(x.numpy() for x in self._programs[name, count](*arguments))

    def _step(self, states: Tensor, gradients: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
        params = self._parameters(states.shape[0])
        new, updates = self._update(states, self._everywhere(gradients), params, steps)
        return new, updates[:, 0]

    def _jacobian(self, states: Tensor, gradients: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
        # A copy of the system for each output: one backward pass gives each its own row.
        count, outputs = states.shape[0], self.size + 1
        states, gradients, steps = (
            tf.repeat(x, outputs, axis=0) for x in (states, gradients, steps)
        )
        gradients = self._everywhere(gradients)
        with tf.GradientTape() as tape:
            tape.watch([states, gradients])
            params = self._parameters(count * outputs)
            new, updates = self._update(states, gradients, params, steps)
            both = tf.reshape(tf.concat([new, updates[:, :1]], axis=1), [count, outputs, outputs])
            diagonal = tf.linalg.diag_part(both)
        zero = tf.UnconnectedGradients.ZERO
        of_state, of_gradient = tape.gradient(diagonal, [states, gradients], None, zero)
        of_state = tf.reshape(of_state, [count, outputs, self.size])
        of_gradient = tf.reshape(of_gradient, [count, outputs, -1])[:, :, 0]
        return (
            of_state[:, : self.size],
            of_gradient[:, : self.size],
            of_state[:, self.size],
            of_gradient[:, self.size],
        )

    def _decay(self, states: Tensor, gradients: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
        params = self._parameters(states.shape[0])
        probes = self._patterns(odd=True)
        total = 0.0
        for probe in probes:
            probe = tf.reshape(probe, [1, *self.shape])
            with tf.GradientTape() as tape:
                tape.watch(params)
                _, updates = self._update(states, self._everywhere(gradients), params, steps)
                along = tf.reduce_sum(updates * tf.reshape(probe, [1, -1]), axis=1)
            zero = tf.UnconnectedGradients.ZERO
            slopes = tape.gradient(along, params, None, zero)[0] * probe
            total += tf.reduce_sum(tf.reshape(slopes, [slopes.shape[0], -1]), axis=1)
        return (-total / (len(probes) * max(self._entries, 1)),)

    def _update(
        self, states: Tensor, gradients: Tensor, params: Sequence[Tensor], steps: Tensor
    ) -> tuple[Tensor, ...]:
        """New states and the steps of all entries `[N, entries]`, means over the noise."""
        if not self.noise:
            return self._update_once(states, gradients, params, steps)
        signs = self._patterns()
        count, copies = states.shape[0], len(signs)
        states, gradients, steps = (
            tf.repeat(x, copies, axis=0) for x in (states, gradients, steps)
        )
        params = [tf.repeat(x, copies, axis=0) for x in params]
        gradients += self.noise * tf.tile(tf.reshape(signs, [copies, -1]), [count, 1])
        found = self._update_once(states, gradients, params, steps)
        return tuple(tf.reduce_mean(tf.reshape(x, [count, copies, -1]), axis=1) for x in found)

    def _update_once(
        self, states: Tensor, gradients: Tensor, params: Sequence[Tensor], steps: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = states.shape[0]
        heard = {}
        if self.loss is not None:
            heard["train_loss"] = tf.fill([count], float(self.loss))
        if self.total_steps:
            heard["total_steps"] = tf.fill([count], float(self.total_steps))
        signals = rules.Signals.silent(steps, **heard)
        updates, new = self.subject.rule.update(
            self.subject.copies(count),
            self._unflatten(states),
            [tf.reshape(gradients, [count, *self.shape])],
            params,
            signals,
        )
        floats = [
            tf.reshape(x, [count, -1])
            for x, size in zip(tf.nest.flatten(new), self._sizes, strict=True)
            if size
        ]
        return tf.concat(floats, axis=1), tf.reshape(updates[0], [count, -1])

    def _unflatten(self, states: Tensor) -> State:
        count = states.shape[0]
        parts = iter(tf.split(states, [size for size in self._sizes if size], axis=1))
        flat = [
            tf.reshape(next(parts), [count, *x.shape[1:]]) if size else tf.repeat(x, count, axis=0)
            for x, size in zip(tf.nest.flatten(self._structure), self._sizes, strict=True)
        ]
        return tf.nest.pack_sequence_as(self._structure, flat)

    @property
    def _entries(self) -> int:
        return int(np.prod(self.shape))

    def _everywhere(self, gradients: Tensor) -> Tensor:
        """`[N]` -> `[N, entries]`."""
        return tf.repeat(gradients[:, None], self._entries, axis=1)

    def _parameters(self, count: int) -> list[Tensor]:
        if self.parameter is not None:
            values = np.full(self.shape, self.parameter)
        else:
            rng = np.random.default_rng(_PATTERN_SEED)
            values = _PARAMETER_SIZE * rng.standard_normal(self.shape)
        values = np.broadcast_to(values.astype("float32"), [count, *self.shape])
        return [tf.constant(values)]

    def _patterns(self, odd: bool = False) -> Array:
        """Signs `[M, entries]` whose mean is zero; their first half, with `odd`."""
        rng = np.random.default_rng(_PATTERN_SEED + 1)
        half = 1 if self._entries == 1 else _MOST_PATTERNS // 2
        signs = rng.choice([-1.0, 1.0], [half, self._entries])
        signs[:, 0] = 1.0
        return (signs if odd else np.concatenate([signs, -signs])).astype("float32")
