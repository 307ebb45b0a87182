"""The members of a population, side by side on one axis."""

from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras.rules.base import State
from lopt_keras.types import Tensor, Tensors


class Hyperparameters(NamedTuple):
    """The outer hyperparameters of N members, each `[N]` float32.

    Attributes:
        multiplier: of the steps that a trainer takes with the member's theta.
        stddev: standard deviation of the perturbations of theta in its meta-gradient.
        length: of its problems in meta-training, as a fraction of the horizon.
    """

    multiplier: Tensor
    stddev: Tensor
    length: Tensor


class Members(NamedTuple):
    """N learned optimizers, and what each is trained with.

    Attributes:
        theta: dict of `[N, ...]`.
        state: `State` of the rule that trains theta, `[N, ...]`.
        workers: `EstimatorState` of the estimator, `[N, ...]`.
        trainers: `[N]` int32, which theta of the pool of trainers trains the member.
        hyperparameters: `Hyperparameters`.
    """

    theta: Tensors
    state: State
    workers: Any
    trainers: Tensor
    hyperparameters: Hyperparameters


def gather(nest: Any, indices: Tensor) -> Any:
    """The members of these indices: nest of `[N, ...]` from nest of `[M, ...]`."""
    return tf.nest.map_structure(lambda x: tf.gather(x, indices), nest)
