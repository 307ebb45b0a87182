"""Who descends from whom, and who trained whom."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lopt_keras.types import Array
from meta.population.evolution import Copy
from meta.population.members import Hyperparameters

_DIGITS = 6


class Genealogy:
    """What happened to a population, generation by generation.

    Args:
        num_members: N.
        generations: list of dicts, as `record` makes them; empty at the start.
    """

    def __init__(self, num_members: int, generations: Iterable[dict[str, Any]] = ()) -> None:
        self.num_members = num_members
        self.generations = list(generations)

    @classmethod
    def parse(cls, text: str | bytes) -> "Genealogy":
        """From what `to_json` wrote."""
        content = json.loads(text)
        return cls(content["num_members"], content["generations"])

    def to_dict(self) -> dict[str, Any]:
        """All of it: `num_members` and `generations`."""
        return {"num_members": self.num_members, "generations": self.generations}

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def record(
        self,
        step: int,
        scores: Array,
        fitness: Array,
        trainers: Array,
        hyperparameters: Hyperparameters,
        reverted: Sequence[int],
        copies: Sequence[Copy],
    ) -> None:
        """Adds a generation.

        Args:
            step: outer steps taken so far.
            scores, fitness: `[N]`, at its end.
            trainers: `[N]`, who trained each member in it.
            hyperparameters: `Hyperparameters` in it.
            reverted: members that are as before it.
            copies: list of `Copy`, made after it.
        """
        self.generations.append(
            {
                "step": int(step),
                "scores": _rounded(scores),
                "fitness": _rounded(fitness),
                "trainers": [int(x) for x in trainers],
                "hyperparameters": {
                    name: _rounded(x) for name, x in hyperparameters._asdict().items()
                },
                "reverted": [int(x) for x in reverted],
                "copies": [[int(x) for x in copy] for copy in copies],
            }
        )

    @property
    def scores(self) -> Array:
        """`[generations, N]`."""
        shape = (len(self.generations), self.num_members)
        values = [[np.nan if x is None else x for x in g["scores"]] for g in self.generations]
        return np.reshape(np.asarray(values, float), shape)

    @property
    def steps(self) -> Array:
        """Outer steps at the end of each generation: `[generations]`."""
        return np.asarray([g["step"] for g in self.generations], int)

    def founders(self) -> Array:
        """Of which member of the start each member descends, at the end of each generation.

        Returns:
            `[generations, N]` integers, before the copies that were made after it.
        """
        current, found = np.arange(self.num_members), []
        for generation in self.generations:
            found.append(current.copy())
            for loser, winner in generation["copies"]:
                current[loser] = found[-1][winner]
        return np.reshape(found, (len(found), self.num_members)).astype(int)

    def ancestry(self, member: int) -> list[dict[str, Any]]:
        """How a member of the last generation came to be.

        Args:
            member: index.

        Returns:
            List of dicts, the oldest first: one for each generation in which the line moved
            to another place or got another trainer or other hyperparameters, with the `step`
            at the end of that generation, the `member` that the line was, its `trainer`, its
            `hyperparameters`, its `score`, and `copied`, whether the place was taken over
            from the line just before that generation.
        """
        line = []
        for index in range(len(self.generations) - 1, -1, -1):
            generation = self.generations[index]
            entry = {
                "step": generation["step"],
                "member": int(member),
                "trainer": generation["trainers"][member],
                "score": generation["scores"][member],
                "hyperparameters": {
                    name: x[member] for name, x in generation["hyperparameters"].items()
                },
            }
            before = self.generations[index - 1]["copies"] if index else []
            winner = dict(map(tuple, before)).get(member)
            line.append({**entry, "copied": winner is not None})
            member = member if winner is None else winner
        line.reverse()
        return [
            entry for i, entry in enumerate(line) if not i or _life(entry) != _life(line[i - 1])
        ]


def _life(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["member"], entry["trainer"], entry["hyperparameters"], entry["copied"]


def _rounded(values: Any) -> list[float | None]:
    """Floats of a few digits, None where they are not finite: JSON has no other."""
    return [float(f"{x:.{_DIGITS}g}") if np.isfinite(x) else None for x in np.asarray(values)]
