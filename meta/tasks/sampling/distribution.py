"""The distribution over tasks: what a seed means, and which tasks are held out.

Five sets of tasks, none of which shares a task with another:

- `train`: for meta-training.
- `heldout_easy`: the same families, with architectures and settings of their own.
- `heldout_families`: families that are never meta-trained on.
- `heldout_scale`: the same families as `train`, with 10 to 100 times as many parameters.
- `train_scale`: about as large (10 to 150 times), with architectures of its own, for meta-training.

A family has a few architectures in each set, and each is one XLA program; settings
make as many tasks of them as there are seeds.
"""

import functools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meta.tasks.base import Task
from meta.tasks.families import FAMILIES
from meta.tasks.ranges import Choice

SETS = ("train", "heldout_easy", "heldout_families", "heldout_scale", "train_scale")
"""The names of the sets."""

_LARGE_SETS = ("heldout_scale", "train_scale")

HELD_OUT_FAMILIES = ("maf", "mlp_mixer", "synthetic_function", "two_moons", "vae")
"""Families of which no task is in another set than `heldout_families`."""

LATER_FAMILIES = ("few_examples",)
"""Families of no set, which mixtures may have. The sets number their tasks through all of their
families, so that one more would make other tasks of the same numbers."""


class Config(NamedTuple):
    """What makes a task, as JSON can hold it.

    Attributes:
        family: name.
        architecture, setting: dicts, together the arguments of the family.
    """

    family: str
    architecture: dict
    setting: dict

    @property
    def program(self) -> str:
        """A string that is the same for tasks that are one XLA program."""
        return f"{self.family} {json.dumps(self.architecture, sort_keys=True)}"

    @property
    def key(self) -> str:
        """A string that tells the task from any other."""
        return f"{self.program} {json.dumps(self.setting, sort_keys=True)}"

    def build(self, data_dir: Any = None) -> Task:
        """The `Task`."""
        return build([self], data_dir)


def families(of: str) -> tuple[str, ...]:
    """The names of the families in a set.

    Raises:
        ValueError: if there is no such set.
    """
    if of not in SETS:
        raise ValueError(f"`of` must be one of {SETS}. Received: of={of!r}")
    if of == "heldout_families":
        return HELD_OUT_FAMILIES
    seen = [name for name in FAMILIES if name not in (*HELD_OUT_FAMILIES, *LATER_FAMILIES)]
    if of in _LARGE_SETS:
        # Some have so few large architectures that `heldout_scale` has them all.
        seen = [name for name in seen if FAMILIES[name].large and architectures(name, of)]
    return tuple(seen)


def mixture_families() -> tuple[str, ...]:
    """The names of the families that meta-training may have: those of `train`, and later ones."""
    return families("train") + LATER_FAMILIES


def sample(seed: int, of: str = "train", data_dir: Any = None) -> Task:
    """The task of that seed, the same on every machine.

    Args:
        seed: non-negative integer.
        of: one of `SETS`.
        data_dir: where datasets are prepared.

    Returns:
        `Task`.

    Raises:
        ValueError: if there is no such set.
    """
    return sample_config(seed, of).build(data_dir)


def sample_config(seed: int, of: str = "train") -> Config:
    """The `Config` of `sample`: the families take turns.

    Args:
        seed, of: as for `sample`.

    Raises:
        ValueError: if there is no such set.
    """
    known = families(of)
    return config(known[seed % len(known)], seed // len(known), of)


def config(family: str, number: int, of: str = "train") -> Config:
    """The `Config` of a family's task of that number.

    Args:
        family: name.
        number: non-negative integer.
        of: one of `SETS`, which must have the family. Later families have tasks with the numbers
            of `train` and of `heldout_easy`, which `sample` never draws.

    Raises:
        ValueError: if the set has no such tasks.
    """
    found = architectures(family, of)
    if not found:
        raise ValueError(f"`family` must be one of {families(of)}. Received: family={family!r}")
    rng = _rng(f"{family} task", of, number)
    architecture = Choice(*found).sample(rng, {})
    return Config(family, architecture, _draw(FAMILIES[family].setting, rng))


@functools.cache
def architectures(family: str, of: str = "train") -> list[dict[str, Any]]:
    """The architectures that tasks of a family have in a set: list of dicts, all different.

    Those of `heldout_easy` differ from those of `train`, and those of `train_scale` from those of
    `heldout_scale`.
    """
    cls, ranges = FAMILIES[family], architecture_ranges(family, of)
    other = {"heldout_easy": "train", "train_scale": "heldout_scale"}.get(of)
    taken = architectures(family, other) if other else []
    found: list[dict[str, Any]] = []
    attempt = 0
    # A family may have fewer architectures than it is allowed.
    while len(found) < cls.num_architectures and attempt < 20 * cls.num_architectures:
        candidate = _draw(ranges, _rng(family, of, attempt))
        if candidate not in found and candidate not in taken:
            found.append(candidate)
        attempt += 1
    return found


def architecture_ranges(family: str, of: str = "train") -> dict[str, Any]:
    """The ranges of a family's architectures in a set: dict."""
    cls = FAMILIES[family]
    return {**cls.architecture, **(cls.large if of in _LARGE_SETS else {})}


def by_program(configs: Iterable[Config]) -> dict[str, list[Config]]:
    """Dict from program to the list of those `Config`s that it is of."""
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(config.program, []).append(config)
    return groups


def build(configs: Sequence[Any], data_dir: Any = None) -> Task:
    """One `Task` of which tasks that share their program are the variants.

    Args:
        configs: sequence of `Config`.
        data_dir: where datasets are prepared.

    Raises:
        ValueError: if their programs differ.
    """
    first, *others = configs
    if any(config.program != first.program for config in others):
        raise ValueError("`configs` must be of one family and architecture.")
    cls = FAMILIES[first.family]
    columns = {name: [config.setting[name] for config in configs] for name in cls.setting}
    where = {"data_dir": data_dir} if "data_dir" in cls.__dataclass_fields__ else {}
    return cls(**first.architecture, **columns, **where)


def _draw(ranges: Mapping[str, Any], rng: Any) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for name, values in ranges.items():
        drawn[name] = values.sample(rng, drawn)
    return drawn


def _rng(purpose: str, of: str, number: int) -> np.random.Generator:
    """A generator for each purpose, set and number, the same on every machine."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), SETS.index(of), number])
