"""Which tasks to evaluate on."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from meta.tasks.families import FAMILIES
from meta.tasks.sampling import distribution

_DEFAULT_COUNT, _LARGEST_COUNT = 20, 10_000


class Entry(NamedTuple):
    """A task of the suite.

    Attributes:
        name: unique in the suite.
        config: `meta.tasks.sampling.distribution.Config`.
    """

    name: str
    config: distribution.Config


def parse(text: str, overrides: Mapping[str, Any] | None = None) -> list[Entry]:
    """The tasks that a text names.

    Args:
        text: comma-separated `NAME`, `NAME:COUNT` or `NAME:COUNT:FIRST`, with the name of
            a set (its tasks FIRST, FIRST + 1, ...) or of a family (the same of its tasks in
            the set `heldout_easy`, or `heldout_families`). COUNT defaults to 20, FIRST to
            0. Or JSON: an object with `family` and arguments of it, or a list of them.
        overrides: dict of arguments that replace those of the tasks; tasks that do not
            have all of them are left out.

    Returns:
        List of `Entry`, without tasks that are the same as an earlier one.

    Raises:
        ValueError: if the text names no task, or the arguments do not fit.
    """
    entries = _from_json(text) if text.lstrip()[:1] in ("{", "[") else _from_names(text)
    if overrides:
        entries = [_overridden(e, overrides) for e in entries if _has(e.config, overrides)]
    unique = {entry.config.key: entry for entry in reversed(entries)}
    entries = [entry for entry in entries if unique[entry.config.key] is entry]
    if not entries:
        raise ValueError(
            f"`tasks` must name at least one task that has the arguments {overrides or {}}. "
            f"Received: tasks={text}"
        )
    return entries


def _from_names(text: str) -> list[Entry]:
    entries = []
    for part in text.split(","):
        name, *numbers = part.strip().split(":")
        if len(numbers) > 2 or not all(re.fullmatch(r"\d{1,9}", number) for number in numbers):
            raise ValueError(
                f"`tasks` must be NAME, NAME:COUNT or NAME:COUNT:FIRST. Received: {part}"
            )
        defaults = (_DEFAULT_COUNT, 0)
        count, first = (*map(int, numbers), *defaults[len(numbers) :])
        if count > _LARGEST_COUNT:
            raise ValueError(f"`tasks` must have at most {_LARGEST_COUNT} each. Received: {part}")
        entries += [_task(name, number) for number in range(first, first + count)]
    return entries


def _task(name: str, number: int) -> Entry:
    if name in distribution.SETS:
        config = distribution.sample_config(number, name)
        return Entry(f"{name}/{number}/{config.family}", config)
    if name not in FAMILIES:
        raise ValueError(
            f"`tasks` must be of the sets {distribution.SETS} or the families "
            f"{tuple(FAMILIES)}. Received: {name!r}"
        )
    held_out = name in distribution.HELD_OUT_FAMILIES
    config = distribution.config(name, number, "heldout_families" if held_out else "heldout_easy")
    return Entry(f"{name}/{number}", config)


def _from_json(text: str) -> list[Entry]:
    try:
        specs = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"`tasks` must be JSON or names. Received: {text}: {error}") from error
    specs = specs if isinstance(specs, list) else [specs]
    if not all(isinstance(spec, dict) for spec in specs):
        raise ValueError(f"`tasks` must be names or JSON objects. Received: {text}")
    return [Entry(f"{i}/{spec.get('family')}", _config(dict(spec))) for i, spec in enumerate(specs)]


def _config(arguments: dict[str, Any]) -> distribution.Config:
    """The `Config` of a family with some arguments, the others at their defaults."""
    family = arguments.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(
            f"A task's 'family' must be one of {tuple(FAMILIES)}. Received: {family!r}"
        )
    cls = FAMILIES[family]
    fields = {f.name: f.default for f in dataclasses.fields(cls) if f.metadata.get("in_config", 1)}
    if unknown := set(arguments) - set(fields):
        raise ValueError(
            f"{family} has the arguments {sorted(fields)}. Received: {sorted(unknown)}"
        )
    setting = {name: arguments.pop(name, fields[name]) for name in cls.setting}
    return distribution.Config(family, arguments, setting)


def _has(config: distribution.Config, overrides: Mapping[str, Any]) -> bool:
    return set(overrides) <= {f.name for f in dataclasses.fields(FAMILIES[config.family])}


def _overridden(entry: Entry, overrides: Mapping[str, Any]) -> Entry:
    family, architecture, setting = entry.config
    own = {name: value for name, value in overrides.items() if name in setting}
    others = {name: value for name, value in overrides.items() if name not in setting}
    config = distribution.Config(family, architecture | others, setting | own)
    return Entry(entry.name, config)
