"""The learning rates that a comparison tries."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from lopt_keras.validation import check_number
from meta.evaluation.suite import Entry
from meta.tasks.sampling import distribution

Chosen: TypeAlias = dict[str, dict[str, float]]
"""From the key of a task's `Config` to the tuned rate of each optimizer, by name."""


def grid(middle: float, num_rates: int) -> list[float]:
    """Learning rates around one, half-decades apart, the lowest first: list of floats.

    With three digits. A middle that is itself rounded gives the rates that its origin gives.
    """
    exact = 10.0 ** (round(2.0 * math.log10(middle)) / 2.0)
    middle = exact if float(f"{exact:.3g}") == middle else middle
    exponents = (np.arange(num_rates) - num_rates // 2) / 2
    return [float(f"{middle * 10.0**e:.3g}") for e in exponents]


def read(file: str) -> Chosen:
    """The rates that an earlier comparison has chosen.

    Args:
        file: its results.json.

    Raises:
        ValueError: if it holds no results of a comparison.
    """
    try:
        with open(file, encoding="utf-8") as f:
            tasks = json.load(f)["tasks"].values()
        return {distribution.Config(**task["config"]).key: _rates(task) for task in tasks}
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            "`--rates_from` must be the results.json of an earlier comparison. Received: "
            f"{os.fspath(file)!r}. {error!r}"
        ) from error


def check(file: str, entries: Iterable[Entry], names: Iterable[str]) -> Chosen:
    """What `read` gives, if it has a rate for each task and each optimizer that is tuned.

    Args:
        file: as for `read`.
        entries: tasks of the suite.
        names: of the optimizers that are tuned.

    Raises:
        ValueError: if it cannot be read, or one is missing.
    """
    chosen, names = read(file), list(names)
    for entry in entries:
        own = chosen.get(entry.config.key, {})
        if missing := [name for name in names if name not in own]:
            raise ValueError(
                "`--rates_from` must have a learning rate for each task, and each optimizer that "
                f"is tuned. Received: {os.fspath(file)!r}, which has none for {missing} on "
                f"{entry.name}. `--baselines` leaves baselines out."
            )
    return chosen


def _rates(task: Mapping[str, Any]) -> dict[str, float]:
    optimizers = task["optimizers"].items()
    rates = {name: own["learning_rate"] for name, own in optimizers}
    for rate in rates.values():
        if rate is not None:
            check_number("learning_rate", rate, low_open=True)
    return {name: float(rate) for name, rate in rates.items() if rate is not None}
