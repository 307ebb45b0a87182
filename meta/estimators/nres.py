"""Noise-reuse evolution strategies: one perturbation for the whole of a problem."""

from lopt_keras import gating
from meta import random
from meta.estimators import base


class NRES(base.Estimator):
    """`mean_i e_i (l_i+ - l_i-) / (2 stddev^2)`, l the loss of one segment.

    As `PES`, each estimate continues every pair's problem by `unroll_length` steps, and
    is unbiased for the mean loss over the whole `horizon`. But a pair keeps its
    perturbation e_i until it begins a new problem, so that nothing has to be summed up.

    Source: Li et al., arXiv 2304.12180, section 4.
    """

    def init_memory(self, theta, seed):
        """The e_i: dict of `[num_pairs, ...]`."""
        return self.perturbations(theta, random.fold_in(seed, 0))

    def perturb(self, theta, seed, begins, memory):
        return {
            name: gating.select(begins, e, memory[name])
            for name, e in self.perturbations(theta, seed).items()
        }

    def combine(self, samples, memory):
        scores = self.score_samples(samples.perturbations, samples.losses)
        return base.mean(scores), samples.perturbations, {}
