"""Estimators of the meta-gradient, one a file, all with the same two verbs."""

from meta.estimators.base import OUTER_SPLITS, Estimate, Estimator
from meta.estimators.es import ES
from meta.estimators.pes import PES

_ESTIMATORS = {"es": ES, "pes": PES}
NAMES = tuple(_ESTIMATORS)
"""The names that `get` knows."""


def get(name, rule, task, horizon, **kwargs):
    """The estimator of that name.

    Args:
        name: one of `NAMES`.
        rule, task, **kwargs: as `Estimator`.
        horizon: inner steps of a whole problem; only for "pes".
    """
    if name not in _ESTIMATORS:
        raise ValueError(f"`estimator` must be one of {NAMES}. Received: estimator={name!r}")
    if name == "pes":
        kwargs["horizon"] = horizon
    return _ESTIMATORS[name](rule, task, **kwargs)
