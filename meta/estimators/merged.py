"""Pathwise and evolution strategies from the same particles, by inverse variance."""

from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import features
from meta.estimators import pathwise

_MEMORY = 10.0
_LARGEST_VARIANCE = 1e30


class Variances(NamedTuple):
    """Running averages over the estimates so far.

    Attributes:
        pathwise, es: dicts as theta, the variance of each entry between pairs.
        count: scalar float32, estimates so far.
    """

    pathwise: Any
    es: Any
    count: Any


class Merged(pathwise.Pathwise):
    """`(g_rp / v_rp + g_es / v_es) / (1 / v_rp + 1 / v_es)`, entry by entry.

    g_rp is the pathwise estimate and g_es that of `ES`, from the same particles; v
    is the variance of the antithetic pairs, averaged over about 10 earlier estimates.
    It comes from the differences between neighbouring pairs, whose problems are about
    equally old: that gradients differ between the start and the end of a problem is
    no error of a mean over staggered pairs.

    Weights from the samples that they weigh would make the sum biased, and let the
    rare sample through that makes pathwise gradients useless: a few pairs without it
    look precise (measured in docs/gradients.md). So the weights are those of the
    estimates before, and the first estimate is that of `ES`.

    An entry for which a pair has no finite pathwise gradient is that of `ES`, and
    counts as a variance of 1e30. Metrics: `es_weight`, the mean weight of ES over
    all entries, and `excluded`, the share of pairs without a finite gradient.

    Args:
        rule, task, **kwargs: as `Pathwise`; `num_particles` is at least 4.

    Source: Metz et al., arXiv 1810.10180, section 2.2.
    """

    def __init__(self, rule, task, **kwargs):
        super().__init__(rule, task, **kwargs)
        if self.num_pairs < 2:
            raise ValueError(
                "`num_particles` must be at least 4, as variances are between pairs. "
                f"Received: num_particles={2 * self.num_pairs}"
            )

    def init_memory(self, theta):
        """`Variances` that leave the first estimate to ES."""
        ones = {name: tf.ones_like(x) for name, x in theta.items()}
        zeros = {name: tf.zeros_like(x) for name, x in theta.items()}
        return Variances(ones, zeros, tf.constant(0.0))

    def combine(self, samples, memory):
        n = self.num_pairs
        pairs = {name: (g[:n] + g[n:]) / 2 for name, g in samples.gradients.items()}
        scores = self.score_samples(samples.perturbations, samples.losses)
        weights = {
            name: tf.math.divide_no_nan(v, v + memory.es[name])
            for name, v in memory.pathwise.items()
        }
        gradient = {
            name: _merge(weight, pairs[name], scores[name]) for name, weight in weights.items()
        }
        memory = Variances(
            pathwise=_average(memory.pathwise, pairs, memory.count),
            es=_average(memory.es, scores, memory.count),
            count=memory.count + 1.0,
        )
        flat = tf.concat([tf.reshape(w, [-1]) for w in weights.values()], axis=0)
        usable = features.gradients_are_usable(list(pairs.values()))
        metrics = {
            "es_weight": tf.reduce_mean(flat),
            "excluded": 1.0 - tf.reduce_mean(tf.cast(usable, tf.float32)),
        }
        return gradient, memory, metrics


def _merge(weight, pairs, scores):
    """Of one theta entry: the means over pairs, that of `scores` with this weight."""
    es, path = tf.reduce_mean(scores, axis=0), tf.reduce_mean(pairs, axis=0)
    return tf.where(tf.math.is_finite(path), weight * es + (1.0 - weight) * path, es)


def _average(averages, samples, count):
    """The running averages with the variances of these samples, `[num_pairs, ...]`."""
    rate = tf.maximum(1.0 / (count + 1.0), 1.0 / _MEMORY)
    updated = {}
    for name, x in samples.items():
        half = x.shape[0] // 2
        differences = x[0 : 2 * half : 2] - x[1 : 2 * half : 2]
        variance = tf.reduce_mean(tf.square(differences), axis=0) / 2
        # Neither a NaN nor an infinity is below: both count as the largest.
        variance = tf.where(variance < _LARGEST_VARIANCE, variance, _LARGEST_VARIANCE)
        updated[name] = averages[name] + rate * (variance - averages[name])
    return updated
