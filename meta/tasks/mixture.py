"""A mixture of tasks to meta-train on, as few programs as their shapes allow."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from lopt_keras.validation import check_integer, check_number
from meta.tasks.base import Task
from meta.tasks.sampling import distribution
from meta.tasks.sampling.distribution import Config
from meta.tasks.scoring import curves, references
from meta.tasks.scoring.measured import identify
from meta.tasks.scoring.normalized import AdamSteps, Normalized

SCORES = ("loss", "adam_steps")
"""How losses are made comparable: by `Normalized` or by `AdamSteps`."""

_MOST_TASKS = 100_000


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Which tasks of the sets `train` and `train_scale` and of later families, and how often.

    Args:
        families: dict from name of family to its weight: the fraction of the tasks that are
            of it. By default all families of meta-training, equally.
        num_tasks: how many tasks. The families take turns, each with its tasks 0, 1, ...,
            so that a smaller mixture of the same families is part of a larger one.
        milliseconds: time budget: tasks of which a step of a particle takes longer, by
            `meta/tasks/scoring/references.json`, are left out. By default none are.
        score: one of `SCORES`. "adam_steps" needs learning curves too,
            `meta/tasks/scoring/curves.json`.
        large: the same for tasks of the set `train_scale`, beside those of `families`. By default
            there are none.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    families: Mapping[str, float] | None = None
    num_tasks: int = 1000
    milliseconds: float | None = None
    score: str = "loss"
    large: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_integer("num_tasks", self.num_tasks, low=1, high=_MOST_TASKS)
        if self.milliseconds is not None:
            check_number("milliseconds", self.milliseconds, low_open=True)
        if self.score not in SCORES:
            raise ValueError(f"`score` must be one of {SCORES}. Received: score={self.score!r}")
        _check_weights("families", self.families, distribution.mixture_families())
        _check_weights("large", self.large, distribution.families("train_scale"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From JSON: an object of the arguments, or the name of one family.

        Raises:
            ValueError: if it is neither, or the arguments do not fit.
        """
        if text in distribution.mixture_families():
            return cls({text: 1.0})
        try:
            return cls(**json.loads(text))
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                "`tasks` must be a family of tasks, or a JSON object with some of "
                "'families', 'large', 'num_tasks', 'milliseconds' and 'score'. "
                f"Received: tasks={text}. {error}"
            ) from error

    def configs(self, data_dir: Any = None) -> list[Config]:
        """Those of its tasks that Adam can train and that are in the budget: list of `Config`.

        Args:
            data_dir: where references are that do not ship.

        Raises:
            ValueError: if a task has no reference, or none is left.
        """
        found, steps = references.MEASURED.known(data_dir), curves.MEASURED.known(data_dir)
        missing, chosen = 0, []
        for config in self.candidates():
            key = identify(config)
            reference = found.get(key)
            missing += reference is None
            if reference is None or not self._admits(reference):
                continue
            if self.score == "adam_steps":
                missing += key not in steps
                # Other problems than those of the reference: of few examples, those can mislead.
                if key in steps and steps[key][-1] >= steps[key][0]:
                    continue
            chosen.append(config)
        if missing:
            raise ValueError(
                f"{missing} of {self.num_tasks} tasks have no reference loss or curve. "
                "`complete` computes them."
            )
        if not chosen:
            raise ValueError(
                f"No task of the {self.num_tasks} can be trained by Adam within "
                f"milliseconds={self.milliseconds}, with a curve that falls."
            )
        return chosen

    def build(self, data_dir: Any = None) -> dict[str, tuple[Task, int]]:
        """The tasks by program.

        Returns:
            Dict from `family/number` to `(Task, weight)`, the weight being the number of
            tasks that are variants of this one program.
        """
        programs: dict[str, tuple[Task, int]] = {}
        counts: dict[str, int] = {}
        for configs in distribution.by_program(self.configs(data_dir)).values():
            family = configs[0].family
            counts[family] = counts.get(family, -1) + 1
            task = scored(configs, self.score, data_dir)
            programs[f"{family}/{counts[family]}"] = task, len(configs)
        return programs

    def candidates(self) -> Iterator[Any]:
        """All tasks of the mixture, whether they are trained on or not."""
        weights = {
            (name, of): weight
            for of, given in (("train", self._families), ("train_scale", self.large or {}))
            for name, weight in given.items()
        }
        counts = dict.fromkeys(weights, 0)
        for _ in range(self.num_tasks):
            # The one that lags most behind its fraction.
            name, of = min(weights, key=lambda key: (counts[key] + 1) / weights[key])
            yield distribution.config(name, counts[name, of], of)
            counts[name, of] += 1

    @property
    def _families(self) -> Mapping[str, float]:
        return self.families or dict.fromkeys(distribution.families("train"), 1.0)

    def examples(self) -> list[Config]:
        """The first of all tasks, and the first of each large family."""
        large = [distribution.config(name, 0, "train_scale") for name in self.large or ()]
        return [next(self.candidates()), *large]

    def complete(self, data_dir: Any = None, ships: bool = False) -> list[Any]:
        """Computes the references and curves that its tasks lack, with a progress bar.

        Args:
            data_dir: where datasets are prepared, and what is computed is kept.
            ships: whether it is kept in the files that ship instead.

        Returns:
            The `Reference` of each of its candidates: list.
        """
        candidates = list(self.candidates())
        found = references.MEASURED.complete(candidates, data_dir, ships)
        if self.score == "adam_steps":
            admitted = zip(candidates, found, strict=True)
            curves.MEASURED.complete([c for c, r in admitted if self._admits(r)], data_dir, ships)
        return found

    def references_digest(self, data_dir: Any = None) -> str:
        """sha256 of what its tasks are scored by, hexadecimal."""
        known = (curves if self.score == "adam_steps" else references).MEASURED.known(data_dir)
        keys = (identify(config) for config in self.configs(data_dir))
        # But for the milliseconds, which say where they were measured, too.
        used = {key: known[key] if self.score == "adam_steps" else known[key][:2] for key in keys}
        return hashlib.sha256(json.dumps(used).encode()).hexdigest()

    def _admits(self, reference: Any) -> bool:
        in_budget = self.milliseconds is None or reference.milliseconds <= self.milliseconds
        return reference.is_trainable and in_budget


def _check_weights(name: str, weights: Any, known: Sequence[str]) -> None:
    """Raises unless `weights` is None, or a dict from known families to positive numbers."""
    if weights is None:
        return
    if not isinstance(weights, Mapping) or not weights:
        raise TypeError(
            f"`{name}` must be a dict from names of families to weights. "
            f"Received: {name}={weights!r}"
        )
    for family, weight in weights.items():
        check_number(f"{name}[{family!r}]", weight, low_open=True)
    if unknown := set(weights) - set(known):
        raise ValueError(
            f"`{name}` must be some of {known}. Received: {', '.join(sorted(map(str, unknown)))}"
        )


def scored(configs: Sequence[Any], score: str, data_dir: Any = None) -> Task:
    """One task with comparable losses of which configs that share their program are variants."""
    keys = [identify(config) for config in configs]
    task = distribution.build(configs, data_dir)
    if score == "adam_steps":
        return AdamSteps(task, [curves.MEASURED.known(data_dir)[key] for key in keys])
    found = [references.MEASURED.known(data_dir)[key] for key in keys]
    return Normalized(task, [r.initial for r in found], [r.final for r in found])
