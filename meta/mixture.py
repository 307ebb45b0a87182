"""A mixture of tasks to meta-train on, as few programs as their shapes allow."""

import dataclasses
import json
from collections.abc import Mapping

from lopt_keras.rules.base import check_integer, check_number
from meta.tasks import curves, distribution, references
from meta.tasks.normalized import AdamSteps, Normalized

SCORES = ("loss", "adam_steps")
"""How losses are made comparable: by `Normalized` or by `AdamSteps`."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Which tasks of the set `train`, and how often.

    Args:
        families: dict from name of family to its weight: the share of the tasks that are
            of it. By default all families of meta-training, equally.
        num_tasks: how many tasks. The families take turns, each with its tasks 0, 1, ...,
            so that a smaller mixture of the same families is part of a larger one.
        milliseconds: time budget: tasks of which a step of a particle takes longer, by
            `meta/tasks/references.json`, are left out. By default none are.
        score: one of `SCORES`. "adam_steps" needs learning curves too,
            `meta/tasks/curves.json`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    families: Mapping[str, float] | None = None
    num_tasks: int = 1000
    milliseconds: float | None = None
    score: str = "loss"

    def __post_init__(self):
        check_integer("num_tasks", self.num_tasks, low=1)
        if self.milliseconds is not None:
            check_number("milliseconds", self.milliseconds, low_open=True)
        if self.score not in SCORES:
            raise ValueError(f"`score` must be one of {SCORES}. Received: score={self.score!r}")
        if self.families is not None:
            if not isinstance(self.families, Mapping) or not self.families:
                raise TypeError(
                    "`families` must be a dict from names of families to weights. "
                    f"Received: families={self.families!r}"
                )
            for name, weight in self.families.items():
                check_number(f"families[{name!r}]", weight, low_open=True)
            known = distribution.families("train")
            if unknown := set(self.families) - set(known):
                raise ValueError(
                    f"`families` must be some of {known}. Received: {', '.join(sorted(unknown))}"
                )

    @classmethod
    def parse(cls, text):
        """From JSON: an object of the arguments, or the name of one family.

        Raises:
            ValueError: if it is neither, or the arguments do not fit.
        """
        if text in distribution.families("train"):
            return cls({text: 1.0})
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`tasks` must be a family of tasks, or a JSON object with some of "
                "'families', 'num_tasks', 'milliseconds' and 'score'. "
                f"Received: tasks={text}. {error}"
            ) from error

    def configs(self):
        """Those of its tasks that Adam can train and that are in the budget: list of `Config`.

        Raises:
            ValueError: if a task has no reference, or none is left.
        """
        found, steps, missing, chosen = references.load(), curves.load(), 0, []
        for config in self.candidates():
            key = references.identify(config)
            reference = found.get(key)
            admitted = reference is not None and self._admits(reference)
            if admitted:
                chosen.append(config)
            missing += reference is None
            missing += admitted and self.score == "adam_steps" and key not in steps
        if missing:
            raise ValueError(
                f"{missing} of {self.num_tasks} tasks have no reference loss or curve. "
                "`python -m meta.tasks --references_of=MIXTURE` computes those of a mixture."
            )
        if not chosen:
            raise ValueError(
                f"No task of the {self.num_tasks} can be trained by Adam within "
                f"milliseconds={self.milliseconds}."
            )
        return chosen

    def build(self, data_dir=None):
        """The tasks by program.

        Returns:
            Dict from `family/number` to `(Task, weight)`, the weight being the number of
            tasks that are variants of this one program.
        """
        programs, counts = {}, {}
        for configs in distribution.by_program(self.configs()).values():
            family = configs[0].family
            counts[family] = counts.get(family, -1) + 1
            task = scored(configs, self.score, data_dir)
            programs[f"{family}/{counts[family]}"] = task, len(configs)
        return programs

    def candidates(self):
        """All tasks of the mixture, whether they are trained on or not."""
        weights = self.families or dict.fromkeys(distribution.families("train"), 1.0)
        counts = dict.fromkeys(weights, 0)
        for _ in range(self.num_tasks):
            # The one that lags most behind its share.
            family = min(weights, key=lambda name: (counts[name] + 1) / weights[name])
            yield distribution.config(family, counts[family])
            counts[family] += 1

    def complete(self, data_dir=None):
        """Computes the references and curves that its tasks lack: list of `Reference`."""
        candidates = list(self.candidates())
        found = references.complete(candidates, data_dir)
        if self.score == "adam_steps":
            admitted = zip(candidates, found, strict=True)
            curves.complete([c for c, r in admitted if self._admits(r)], data_dir)
        return found

    def _admits(self, reference):
        in_budget = self.milliseconds is None or reference.milliseconds <= self.milliseconds
        return reference.is_trainable and in_budget


def scored(configs, score, data_dir=None):
    """One task with comparable losses of which configs that share their program are variants."""
    keys = [references.identify(config) for config in configs]
    task = distribution.build(configs, data_dir)
    if score == "adam_steps":
        return AdamSteps(task, [curves.load()[key] for key in keys])
    found = [references.load()[key] for key in keys]
    return Normalized(task, [r.initial for r in found], [r.final for r in found])
