"""Estimators of the meta-gradient, one a file, all with the same two verbs."""

from typing import Any

from lopt_keras.rules.base import UpdateRule
from meta.estimators.base import OUTER_SPLITS, Estimate, Estimator
from meta.estimators.es import ES
from meta.estimators.merged import Merged
from meta.estimators.nres import NRES
from meta.estimators.pathwise import Pathwise
from meta.estimators.pes import PES
from meta.tasks.base import Task

_ESTIMATORS = {"es": ES, "pathwise": Pathwise, "merged": Merged, "pes": PES, "nres": NRES}
NAMES = tuple(_ESTIMATORS)
"""The names that `get` knows."""


def get(name: str, rule: UpdateRule, task: Task, **kwargs: Any) -> Estimator:
    """The estimator of that name.

    Args:
        name: one of `NAMES`.
        rule, task, **kwargs: its constructor's arguments, see `Estimator`.

    Raises:
        ValueError: if no estimator bears the name, or its arguments do not fit it.
    """
    if name not in _ESTIMATORS:
        raise ValueError(f"`estimator` must be one of {NAMES}. Received: estimator={name!r}")
    try:
        return _ESTIMATORS[name](rule, task, **kwargs)
    except TypeError as error:
        raise ValueError(f"The estimator {name!r} cannot be made: {error}") from error
