"""Antithetic evolution strategies over whole unrolls."""

from meta import random, unroll
from meta.estimators import base


class ES(base.Estimator):
    """`mean_i (l(theta + e_i) - l(theta - e_i)) e_i / (2 stddev^2)`.

    Every estimate unrolls fresh problems from their start. Both halves of a pair
    see the same initial parameters and batches (common random numbers).

    Source: Metz et al., arXiv 1810.10180, section 2.2.
    """

    def init_worker(self, theta, seed):
        return ()

    def estimate(self, theta, worker, seed):
        e = self.perturbations(theta, random.fold_in(seed, 0))
        particles = base.antithetic(theta, e)
        args = (self.rule, self.task, particles)
        inner = unroll.begin(*args, random.fold_in(seed, 1), self.num_pairs)
        trajectory, _ = unroll.run(
            *args,
            inner,
            random.fold_in(seed, 2),
            self.unroll_length,
            self.num_pairs,
            self.outer_split,
        )
        losses, diverged = self.outer_losses(trajectory)
        metrics = self.metrics(trajectory, losses, diverged)
        return base.Estimate(self.correlate(e, losses), worker, metrics)
