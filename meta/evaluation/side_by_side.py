"""Several hand-designed rules in one program."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras import ops, tree

from lopt_keras import rules
from lopt_keras.rules.base import Signals
from lopt_keras.types import Arrays, Shapes, Tensor, Tensors, Theta


@dataclasses.dataclass(frozen=True)
class SideBySide(rules.UpdateRule):
    """Runs rule i on the i-th equal part of the particles.

    Most of the time that a small task takes is XLA's to compile its loss and
    gradient. Here all rules share them.

    Theta: that of rule i, its names after `i/`, for all particles, of which only the i-th
    part counts. State: entries of one name are one array for all rules, zero in the parts
    of those that have none.

    Args:
        rules: tuple of `UpdateRule`s that mix no tensors, whose state entries of the same
            name have the same shapes.
    """

    rules: tuple[Any, ...]

    @property
    def signals(self) -> tuple[str, ...]:  # type: ignore[override]  # Read-only.
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.signals))

    def theta_shapes(self) -> Shapes:
        return _joined(rule.theta_shapes() for rule in self.rules)

    def init_theta(self, seed: int = 0) -> Arrays:
        return _joined(rule.init_theta(seed) for rule in self.rules)

    def init_tensor_state(self, theta: Theta, param: Tensor, name: str) -> Tensors:
        parts = self._parts(param)
        states = [
            rule.init_tensor_state(self._theta(theta, i), part, name)
            for i, (rule, part) in enumerate(zip(self.rules, parts, strict=True))
        ]
        return _stacked(states, _blank(states))

    def init_shared_state(self, theta: Theta) -> Tensors:
        states = [
            rule.init_shared_state(self._theta(theta, i)) for i, rule in enumerate(self.rules)
        ]
        return _stacked(states, _blank(states))

    def coordinate(
        self, theta: Theta, shared: Tensors, summaries: Sequence[Tensors], signals: Signals
    ) -> tuple[Tensors, Sequence[Any]]:
        states: list[Tensors] = []
        messages: list[dict[int, Tensors]] = [{} for _ in summaries]
        for i, rule in enumerate(self.rules):
            own = self._of(shared, i)
            state, own_messages = rule.coordinate(
                self._theta(theta, i), own, summaries, self._signals(signals, i)
            )
            states.append(own | state)
            for message, own_message in zip(messages, own_messages, strict=True):
                message[i] = own_message
        return _stacked(states, {}), messages

    def update_tensor(
        self,
        theta: Theta,
        state: Tensors,
        message: Any,
        grad: Tensor,
        param: Tensor,
        signals: Signals,
    ) -> tuple[Tensor, Tensors]:
        updates, states = [], []
        for i, rule in enumerate(self.rules):
            own = self._of(state, i)
            known = rule.init_tensor_state(self._theta(theta, i), self._parts(param)[i], "")
            update, new = rule.update_tensor(
                self._theta(theta, i),
                {name: own[name] for name in known},
                message[i],
                self._parts(grad)[i],
                self._parts(param)[i],
                self._signals(signals, i),
            )
            updates.append(update)
            states.append(own | new)
        return ops.concatenate(updates), _stacked(states, {})

    def _parts(self, array: Tensor) -> list[Tensor]:
        return ops.split(array, len(self.rules))

    def _of(self, arrays: Mapping[str, Tensor], i: int) -> Tensors:
        return {name: self._parts(array)[i] for name, array in arrays.items()}

    def _theta(self, theta: Theta, i: int) -> Tensors:
        own = {name: array for name, array in theta.items() if name.startswith(f"{i}/")}
        return {name.removeprefix(f"{i}/"): x for name, x in self._of(own, i).items()}

    def _signals(self, signals: Signals, i: int) -> Signals:
        return tree.map_structure(lambda signal: self._parts(signal)[i], signals)


def _joined(dicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{i}/{name}": value for i, entries in enumerate(dicts) for name, value in entries.items()
    }


def _blank(states: Sequence[Tensors]) -> Tensors:
    """A zero of each entry that some state has."""
    return {name: ops.zeros_like(value) for state in states for name, value in state.items()}


def _stacked(states: Sequence[Tensors], blank: Tensors) -> Tensors:
    names = dict.fromkeys([name for state in states for name in state])
    return {name: ops.concatenate([(blank | state)[name] for state in states]) for name in names}
