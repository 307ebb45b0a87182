"""Who of a population is copied over whom, and what changes in a copy."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array
from lopt_keras.validation import check_integer, check_number
from meta.population.members import Hyperparameters

SELECTIONS = ("truncation", "tournament", "none")
FACTORS = (0.8, 1.25)
"""By one of which a copy's hyperparameter is multiplied."""


class Copy(NamedTuple):
    """One member that is replaced.

    Attributes:
        loser: index of the member that is given up.
        winner: index of the member of which the loser becomes a copy.
    """

    loser: int
    winner: int


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Population-based training (Jaderberg et al., arXiv 1711.09846), for learned optimizers.

    Args:
        selection: "truncation": the worst `num_copied` members become copies, each of one
            drawn from the best `num_copied`. "tournament": `num_copied` times,
            `tournament_size` members are drawn that this generation has not copied yet, and
            the worst of them becomes a copy of the best. "none": nobody is copied.
        num_copied: members that are replaced in a generation.
        tournament_size: members in a tournament.
        multiplier, stddev, length: `(low, high)` of the `Hyperparameters`: they start
            log-uniform in between, and no copy leaves it. Of a single value, it stays.
        resampled: probability with which a copy's hyperparameter is drawn anew. Otherwise it
            is the winner's, times one of `FACTORS`.
        new_trainer: probability with which a copy's trainer is drawn anew, from all.
            Otherwise it is the winner's; the copy of one that trains itself trains itself.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    selection: str = "truncation"
    num_copied: int = 2
    tournament_size: int = 3
    multiplier: tuple[float, float] = (0.01, 10.0)
    stddev: tuple[float, float] = (0.03, 0.3)
    length: tuple[float, float] = (1.0, 1.0)
    resampled: float = 0.1
    new_trainer: float = 0.2

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(
                f"`selection` must be one of {SELECTIONS}. Received: selection={self.selection!r}"
            )
        check_integer("num_copied", self.num_copied, low=1)
        check_integer("tournament_size", self.tournament_size, low=2)
        for name, highest in (("multiplier", 1e6), ("stddev", 1e6), ("length", 1.0)):
            _check_range(name, getattr(self, name), highest)
        for name in ("resampled", "new_trainer"):
            check_number(name, getattr(self, name))
            if getattr(self, name) > 1:
                raise ValueError(
                    f"`{name}` must be a probability. Received: {name}={getattr(self, name)}"
                )

    def check_size(self, num_members: int) -> None:
        """Raises unless a population of that size can evolve so.

        Raises:
            TypeError, ValueError: naming the argument, its value and what is expected.
        """
        check_integer("num_members", num_members, low=2)
        needed = {"truncation": 2 * self.num_copied, "none": 2}
        needed["tournament"] = self.tournament_size + 2 * (self.num_copied - 1)
        if num_members < needed[self.selection]:
            raise ValueError(
                f"`num_members` must be at least {needed[self.selection]} for "
                f"selection={self.selection!r} with num_copied={self.num_copied} and "
                f"tournament_size={self.tournament_size}. Received: num_members={num_members}"
            )

    def draw(self, rng: np.random.Generator, num_members: int) -> Hyperparameters:
        """The `Hyperparameters` of members to start with."""
        return Hyperparameters(
            *(
                np.float32(_log_uniform(rng, getattr(self, name), num_members))
                for name in Hyperparameters._fields
            )
        )

    def copies(self, fitness: Array, rng: np.random.Generator) -> list[Copy]:
        """Who is replaced by whom: list of `Copy`. No winner is a loser of the same generation.

        Args:
            fitness: `[N]`, lower is better; NaN is worst.
            rng: NumPy generator.
        """
        order = np.argsort(np.where(np.isnan(fitness), np.inf, fitness), kind="stable")
        count = self.num_copied
        if self.selection == "truncation":
            winners = rng.integers(0, count, count)
            return [Copy(int(order[-1 - i]), int(order[w])) for i, w in enumerate(winners)]
        copies, free = [], list(order)
        for _ in range(count if self.selection == "tournament" else 0):
            # In the order of fitness.
            drawn = np.sort(rng.choice(len(free), self.tournament_size, replace=False))
            best, worst = free[drawn[0]], free[drawn[-1]]
            copies.append(Copy(int(worst), int(best)))
            free = [member for member in free if member not in (best, worst)]
        return copies

    def inherit(
        self,
        copies: Sequence[Copy],
        trainers: Array,
        hyperparameters: Hyperparameters,
        num_trainers: int,
        rng: np.random.Generator,
        itself: bool = True,
    ) -> tuple[Array, Hyperparameters]:
        """Trainers and hyperparameters of the next generation.

        Args:
            copies: list of `Copy`.
            trainers: `[N]` integers.
            hyperparameters: `Hyperparameters`.
            num_trainers: size of the pool from which trainers are drawn.
            rng: NumPy generator.
            itself: whether trainer i is member i, as it is where the pool is the population.

        Returns:
            `(trainers, hyperparameters)`.
        """
        trainers = np.array(trainers)
        values = [np.array(x) for x in hyperparameters]
        for loser, winner in copies:
            trains_itself = itself and trainers[winner] == winner
            trainers[loser] = loser if trains_itself else trainers[winner]
            if rng.random() < self.new_trainer:
                trainers[loser] = rng.integers(num_trainers)
            for value, name in zip(values, Hyperparameters._fields, strict=True):
                low, high = getattr(self, name)
                changed = value[winner] * rng.choice(FACTORS)
                if rng.random() < self.resampled:
                    changed = _log_uniform(rng, (low, high))
                value[loser] = np.clip(np.float32(changed), np.float32(low), np.float32(high))
        return trainers, Hyperparameters(*values)


def _log_uniform(
    rng: np.random.Generator, bounds: tuple[float, float], size: int | None = None
) -> Any:
    low, high = np.log(bounds)
    return np.exp(rng.uniform(low, high, size))


def _check_range(name: str, bounds: Any, highest: float) -> None:
    try:
        low, high = bounds
    except (TypeError, ValueError):
        low, high = 0.0, -1.0
    if not 0 < low <= high <= highest:
        raise ValueError(
            f"`{name}` must be (low, high) with 0 < low <= high <= {highest:g}. "
            f"Received: {name}={bounds!r}"
        )
