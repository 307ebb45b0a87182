"""Antithetic evolution strategies."""

from typing import Any

from lopt_keras.types import Tensor, Tensors
from meta.estimators import base


class ES(base.Estimator):
    """`mean_i (l(theta + e_i) - l(theta - e_i)) e_i / (2 stddev^2)`.

    Both halves of a pair see the same initial parameters and batches (common
    random numbers).

    Source: Metz et al., arXiv 1810.10180, section 2.2.
    """

    def combine(self, samples: base.Samples, memory: Any) -> tuple[Tensors, Any, dict[str, Tensor]]:
        return base.mean(self.score_samples(samples.perturbations, samples.losses)), memory, {}
