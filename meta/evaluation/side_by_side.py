"""Several hand-designed rules in one program."""

import dataclasses
from typing import Any

from keras import ops, tree

from lopt_keras import rules


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
    def signals(self):
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.signals))

    def theta_shapes(self):
        return _joined(rule.theta_shapes() for rule in self.rules)

    def init_theta(self, seed=0):
        return _joined(rule.init_theta(seed) for rule in self.rules)

    def init_tensor_state(self, theta, param, name):
        parts = self._parts(param)
        states = [
            rule.init_tensor_state(self._theta(theta, i), part, name)
            for i, (rule, part) in enumerate(zip(self.rules, parts, strict=True))
        ]
        return _stacked(states, _blank(states))

    def init_shared_state(self, theta):
        states = [
            rule.init_shared_state(self._theta(theta, i)) for i, rule in enumerate(self.rules)
        ]
        return _stacked(states, _blank(states))

    def coordinate(self, theta, shared, summaries, signals):
        states, messages = [], [{} for _ in summaries]
        for i, rule in enumerate(self.rules):
            own = self._of(shared, i)
            state, own_messages = rule.coordinate(
                self._theta(theta, i), own, summaries, self._signals(signals, i)
            )
            states.append(own | state)
            for message, own_message in zip(messages, own_messages, strict=True):
                message[i] = own_message
        return _stacked(states, {}), messages

    def update_tensor(self, theta, state, message, grad, param, signals):
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

    def _parts(self, array):
        return ops.split(array, len(self.rules))

    def _of(self, arrays, i):
        return {name: self._parts(array)[i] for name, array in arrays.items()}

    def _theta(self, theta, i):
        own = {name: array for name, array in theta.items() if name.startswith(f"{i}/")}
        return {name.removeprefix(f"{i}/"): x for name, x in self._of(own, i).items()}

    def _signals(self, signals, i):
        return tree.map_structure(lambda signal: self._parts(signal)[i], signals)


def _joined(dicts):
    return {
        f"{i}/{name}": value for i, entries in enumerate(dicts) for name, value in entries.items()
    }


def _blank(states):
    """A zero of each entry that some state has."""
    return {name: ops.zeros_like(value) for state in states for name, value in state.items()}


def _stacked(states, blank):
    names = dict.fromkeys([name for state in states for name in state])
    return {name: ops.concatenate([(blank | state)[name] for state in states]) for name in names}
