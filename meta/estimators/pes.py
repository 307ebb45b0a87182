"""Persistent evolution strategies: unrolls that continue across estimates."""

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import features
from lopt_keras.rules.base import check_integer
from meta import random, unroll
from meta.estimators import base


class Worker(NamedTuple):
    """Where the unrolls of PES are.

    Attributes:
        inner: `unroll.InnerState` of P particles.
        xi: dict of `[num_pairs, ...]`, the sum of a pair's perturbations since its
            problem began.
        age: `[num_pairs]` int32, inner steps that count towards the horizon.
    """

    inner: Any
    xi: Any
    age: Any


class PES(base.Estimator):
    """`mean_i xi_i (l_i+ - l_i-) / (2 stddev^2)`, l the loss of one segment.

    Each estimate continues every pair's problem by `unroll_length` steps under a
    new perturbation, and xi_i sums the perturbations that the problem has seen.
    Unbiased for the mean loss over the whole `horizon`, at the cost of a segment.
    A pair begins a new problem, and xi_i is reset, at the horizon or when one of
    its halves has diverged. The pairs start staggered, so that at any time they
    are at different points of their problems.

    Args:
        horizon: inner steps of a whole problem, a multiple of `unroll_length`.
        **kwargs: as `base.Estimator`.

    Source: Vicol et al., arXiv 2112.13835, algorithm 2 (antithetic).
    """

    def __init__(self, rule, task, horizon, **kwargs):
        super().__init__(rule, task, **kwargs)
        check_integer("horizon", horizon, low=1)
        if horizon % self.unroll_length:
            raise ValueError(
                f"`horizon` must be a multiple of unroll_length={self.unroll_length}. "
                f"Received: horizon={horizon}"
            )
        self.horizon = horizon

    def init_worker(self, theta, seed):
        copies = {k: tf.stack([v] * (2 * self.num_pairs)) for k, v in theta.items()}
        inner = unroll.begin(self.rule, self.task, copies, seed, self.num_pairs)
        xi = {k: tf.zeros((self.num_pairs, *v.shape)) for k, v in theta.items()}
        segments = self.horizon // self.unroll_length
        age = tf.range(self.num_pairs) * segments // self.num_pairs * self.unroll_length
        return Worker(inner, xi, age)

    def estimate(self, theta, worker, seed):
        e = self.perturbations(theta, random.fold_in(seed, 0))
        particles = base.antithetic(theta, e)
        args = (self.rule, self.task, particles)
        xi = {name: worker.xi[name] + e[name] for name in theta}
        trajectory, inner = unroll.run(
            *args,
            worker.inner,
            random.fold_in(seed, 1),
            self.unroll_length,
            self.num_pairs,
            self.outer_split,
        )
        losses, diverged = self.outer_losses(trajectory)
        gradient = self.correlate(xi, losses)

        age = worker.age + self.unroll_length
        pair_diverged = diverged[: self.num_pairs] | diverged[self.num_pairs :]
        ended = (age >= self.horizon) | pair_diverged
        fresh = unroll.begin(*args, random.fold_in(seed, 2), self.num_pairs)
        renew = functools.partial(features.select, tf.concat([ended, ended], axis=0))
        worker = Worker(
            inner=tf.nest.map_structure(renew, fresh, inner),
            xi={name: features.select(ended, tf.zeros_like(x), x) for name, x in xi.items()},
            age=tf.where(ended, 0, age),
        )
        return base.Estimate(gradient, worker, self.metrics(trajectory, losses, diverged))
