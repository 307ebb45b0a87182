"""The optimizers that are compared."""

import dataclasses
import functools
import importlib
import json
import os
from typing import Any, ClassVar, TypeAlias

import keras

from lopt_keras import pretrained, rules, saved_model
from lopt_keras.validation import check_number
from meta.evaluation import behaviour

ADAM = "Adam"
"""The name of the baseline that the others are measured by."""


@dataclasses.dataclass(frozen=True)
class HandDesigned:
    """An update rule with a learning rate to tune.

    Attributes:
        name: for tables.
        rule: class of the rule, which takes `learning_rate`.
        middle: of the learning rates to try.
    """

    name: str
    rule: Any
    middle: float

    is_tuned: ClassVar[bool] = True

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells it from others, and from itself with other code, as JSON can hold it."""
        rule = self.rule(learning_rate=self.middle)
        does = behaviour.fingerprint(rule, rule.init_theta())
        return {**rules.serialize(rule), "behaviour": does}


BASELINES = {
    baseline.name: baseline
    for baseline in (
        HandDesigned("SGD, momentum", rules.SGD, 0.1),
        HandDesigned("RMSprop", rules.RMSprop, 0.01),
        HandDesigned(ADAM, rules.Adam, 0.01),
        HandDesigned("AdamW", rules.AdamW, 0.01),
        HandDesigned("Nadam", rules.Nadam, 0.01),
        HandDesigned("Lion", rules.Lion, 0.001),
        HandDesigned("Muon", rules.Muon, 0.01),
        HandDesigned("Muon at Adam's size", rules.AdamSizedMuon, 0.01),
        HandDesigned("SOAP", rules.SOAP, 0.01),
        HandDesigned("Schedule-free AdamW", rules.ScheduleFreeAdamW, 0.01),
        HandDesigned("AdamW, warm-up and cosine", rules.CosineAdamW, 0.01),
    )
}
"""The hand-designed optimizers, with Keras's default hyperparameters, by name."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned rule.

    Attributes:
        name: for tables.
        rule, theta: `UpdateRule` and its meta-parameters.
        sha256: of theta.
    """

    name: str
    rule: Any
    theta: Any
    sha256: str

    is_tuned: ClassVar[bool] = False

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """As that of `HandDesigned`."""
        does = behaviour.fingerprint(self.rule, self.theta)
        return {"rule": rules.serialize(self.rule), "sha256": self.sha256, "behaviour": does}


@dataclasses.dataclass(frozen=True)
class KerasOptimizer:
    """Any Keras optimizer.

    Attributes:
        name: for tables.
        path: `module:Class`.
        config: its constructor's arguments.
        is_tuned: whether its learning rate is tuned, around that of the config.
    """

    name: str
    path: str
    config: Any
    is_tuned: bool = True

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others, as JSON can hold it: of its code nothing is known."""
        return {"class_name": self.path, "config": self.config, "tuned": self.is_tuned}

    @functools.cached_property
    def middle(self) -> float:
        """Of the learning rates to try."""
        return float(keras.ops.convert_to_numpy(self.make().learning_rate))

    def make(self) -> Any:
        """A new one."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)(**self.config)


Tunable: TypeAlias = HandDesigned | KerasOptimizer
Candidate: TypeAlias = Tunable | Learned


def learned(text: str) -> Learned:
    """The `Learned` that `[label=]weights` names.

    Args:
        text: weights that ship, or the path of a SavedModel, after an optional label.

    Raises:
        ValueError: if there are no such weights.
    """
    label, _, path = text.rpartition("=")
    rule, theta, metadata = saved_model.read(pretrained.find(path))
    rule = rules.get(rule)
    name = label or os.path.basename(os.path.normpath(path))
    return Learned(name, rule, rule.check_theta(theta), metadata["sha256"])


def _check_kind(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name!r} must be a {kind.__name__}, not {value!r}")


def from_import_path(text: str) -> KerasOptimizer:
    """The `KerasOptimizer` that a text names, tried once.

    Args:
        text: `module:Class`, or a JSON object with that as `optimizer` and any of `config`
            (object), `tuned` (boolean; whether to tune the learning rate) and `name`.

    Raises:
        ValueError: if it names no Keras optimizer.
    """
    spec: dict[str, Any] = {"optimizer": text}
    try:
        if text.lstrip().startswith("{"):
            spec = json.loads(text)
        path = spec.pop("optimizer")
        _check_kind("optimizer", path, str)
        name, config = spec.pop("name", path.rpartition(":")[2]), spec.pop("config", {})
        found = KerasOptimizer(name, path, config, spec.pop("tuned", True))
        for argument, value, kind in (
            ("name", name, str),
            ("config", config, dict),
            ("tuned", found.is_tuned, bool),
        ):
            _check_kind(argument, value, kind)
        if spec or not name:
            raise ValueError(f"unexpected {sorted(spec) or 'empty name'}")
        optimizer = found.make()
        if found.is_tuned:
            check_number("learning_rate", found.middle, low_open=True)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "`optimizer` must be MODULE:CLASS, or a JSON object with 'optimizer' and some of "
            f"'config', 'tuned' and 'name'. Received: {text}. {error!r}"
        ) from error
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"`optimizer` must be a Keras optimizer. Received: {text}")
    return found
