"""The update rules by name."""

from typing import Any

import keras

from lopt_keras.rules.base import UpdateRule

_RULES: dict[str, type[UpdateRule]] = {}

_RENAMED = {
    "NormalizedMLP": {"cautious": "noise_scaled"},
    "Scheduled": {
        "smallest_scale": "min_parameter_scale",
        "largest_scale": "max_parameter_scale",
        "hears_validation_loss": "uses_validation_loss",
    },
}
"""What arguments were called before 0.1.0, as the metadata of older exports has them."""


def register(*classes: type[UpdateRule]) -> tuple[str, ...]:
    """Makes rules known by their class names; returns the names of all."""
    for cls in classes:
        _RULES[cls.__name__] = cls
    return tuple(_RULES)


def get(identifier: Any, **config: Any) -> UpdateRule:
    """An update rule, from whatever names one.

    Args:
        identifier: an `UpdateRule`, returned as it is; a name in `lopt_keras.rules.NAMES`, in any
            case and with or without underscores (`"factored_mlp"`); the name
            under which a rule class is registered with
            `keras.saving.register_keras_serializable`; or a dict as from
            `serialize`.
        **config: constructor arguments, with a name.

    Raises:
        TypeError: if the identifier is none of these.
        ValueError: if no rule bears the name, or its arguments do not fit it.
    """
    if isinstance(identifier, UpdateRule):
        return identifier
    if isinstance(identifier, dict):
        if set(identifier) != {"class_name", "config"}:
            raise ValueError(
                "A serialized rule must have the keys 'class_name' and 'config'. "
                f"Received: {sorted(identifier, key=str)}"
            )
        return get(identifier["class_name"], **identifier["config"])
    if not isinstance(identifier, str):
        raise TypeError(
            f"`rule` must be an UpdateRule or the name of one of {tuple(_RULES)}. "
            f"Received: {identifier!r}"
        )
    rule = _class_named(identifier)
    renamed = _RENAMED.get(rule.__name__, {})
    config = {renamed.get(name, name): value for name, value in config.items()}
    try:
        return rule(**config)
    except TypeError as error:
        raise ValueError(f"{rule.__name__} cannot be made from {config}: {error}") from error


def serialize(rule: UpdateRule) -> dict[str, Any]:
    """A rule as a dict that JSON can hold and `get` turns back."""
    cls = type(rule)
    name = cls.__name__ if cls in _RULES.values() else keras.saving.get_registered_name(cls)
    return {"class_name": name, "config": rule.get_config()}


def _class_named(name: str) -> type[UpdateRule]:
    plain = name.replace("_", "").lower()
    for known, rule in _RULES.items():
        if known.lower() == plain:
            return rule
    registered = keras.saving.get_registered_object(name)
    if isinstance(registered, type) and issubclass(registered, UpdateRule):
        return registered
    raise ValueError(f"`rule` must be the name of one of {tuple(_RULES)}. Received: {name!r}")
