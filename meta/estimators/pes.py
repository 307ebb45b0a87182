"""Persistent evolution strategies: unrolls that continue across estimates."""

import tensorflow as tf

from lopt_keras import gating
from meta.estimators import base


class PES(base.Estimator):
    """`mean_i xi_i (l_i+ - l_i-) / (2 stddev^2)`, l the loss of one segment.

    Each estimate continues every pair's problem by `unroll_length` steps under a
    new perturbation, and xi_i sums the perturbations that the problem has seen.
    Unbiased for the mean loss over the whole `horizon`, at the cost of a segment.

    Source: Vicol et al., arXiv 2112.13835, algorithm 2 (antithetic).
    """

    def init_memory(self, theta, seed):
        """The xi_i: dict of `[num_pairs, ...]`."""
        return {name: tf.zeros((self.num_pairs, *x.shape)) for name, x in theta.items()}

    def combine(self, samples, memory):
        xi = {
            name: e + gating.select(samples.begins, tf.zeros_like(e), memory[name])
            for name, e in samples.perturbations.items()
        }
        return base.mean(self.score_samples(xi, samples.losses)), xi, {}
