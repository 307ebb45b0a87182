"""Pathwise and evolution strategies from the same particles, by inverse variance."""

from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import gating
from meta.estimators import pathwise

_BLOCK = 100.0
_LARGEST_VARIANCE = 1e30


class Variances(NamedTuple):
    """Variances of each entry between pairs, summed over estimates.

    Attributes:
        pathwise, es: dicts as theta.
        shared: their covariance, likewise.
    """

    pathwise: Any
    es: Any
    shared: Any


class Memory(NamedTuple):
    """The last 100 to 200 estimates.

    Attributes:
        older: `Variances` of a block of 100 estimates; zero in the first block.
        newer: `Variances` of the block since then.
        count: scalar float32, estimates in `newer`.
    """

    older: Any
    newer: Any
    count: Any


class Merged(pathwise.Pathwise):
    """`(g_rp / v_rp + g_es / v_es) / (1 / v_rp + 1 / v_es)`, entry by entry.

    Here v is what the variance of an estimate exceeds the covariance of the two by:
    the weights with which the sum has the least variance. The problems that both have
    seen are noise that no weights take away; where the loss is smooth in theta, the
    covariance is v_rp, and ES adds noise only. (The paper leaves the covariance out.
    A negative one is left out here too.)

    g_rp is the pathwise estimate and g_es that of `ES`, from the same particles.
    Variances are those of the antithetic pairs, averaged over this estimate and the 100
    to 200 before it. They come from the differences between neighbouring pairs, whose
    problems are about equally old: that gradients differ between the start and the end
    of a problem is no error of a mean over staggered pairs.

    Weights from the samples alone that they weigh would make the sum biased, and let
    the rare sample through that makes pathwise gradients useless: a few pairs without
    it look precise. Weights from earlier estimates alone would take a first such sample
    in full. Both are measured in docs/gradients.md.

    An entry for which a pair has no finite pathwise gradient is that of `ES`, and
    counts as a variance of 1e30. Metrics: `es_weight`, the mean weight of ES over
    all entries, and `excluded`, the fraction of pairs without a finite gradient.

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

    def init_memory(self, theta, seed):
        """`Memory` of no estimate."""
        zeros = {name: tf.zeros_like(x) for name, x in theta.items()}
        none = Variances(zeros, zeros, zeros)
        return Memory(none, none, tf.constant(0.0))

    def combine(self, samples, memory):
        n = self.num_pairs
        pairs = {name: (g[:n] + g[n:]) / 2 for name, g in samples.gradients.items()}
        scores = self.score_samples(samples.perturbations, samples.losses)
        memory = _remember(memory, _variances(pairs, scores))
        weights = _es_weights(tf.nest.map_structure(tf.add, memory.older, memory.newer))
        gradient = {
            name: _merge(weight, pairs[name], scores[name]) for name, weight in weights.items()
        }
        flat = tf.concat([tf.reshape(w, [-1]) for w in weights.values()], axis=0)
        usable = gating.gradients_are_usable(list(pairs.values()))
        metrics = {
            "es_weight": tf.reduce_mean(flat),
            "excluded": 1.0 - tf.reduce_mean(tf.cast(usable, tf.float32)),
        }
        return gradient, memory, metrics


def _merge(weight, pairs, scores):
    """Of one theta entry: the means over pairs, that of `scores` with this weight."""
    es, path = tf.reduce_mean(scores, axis=0), tf.reduce_mean(pairs, axis=0)
    return tf.where(tf.math.is_finite(path), weight * es + (1.0 - weight) * path, es)


def _es_weights(variances):
    """From sums of `Variances`, as only their ratios matter: dict as theta."""
    weights = {}
    for name, v_rp in variances.pathwise.items():
        v_es = variances.es[name]
        shared = tf.clip_by_value(variances.shared[name], 0.0, tf.minimum(v_rp, v_es))
        weights[name] = tf.math.divide_no_nan(v_rp - shared, v_rp - shared + v_es - shared)
    return weights


def _variances(pairs, scores):
    """`Variances` of one estimate, from dicts of `[num_pairs, ...]`."""
    variances = Variances({}, {}, {})
    for name in pairs:
        p, s = _differences(pairs[name]), _differences(scores[name])
        products = (tf.square(p), tf.square(s), p * s)
        means = [tf.reduce_mean(x, axis=0) / 2 for x in products]
        # Neither a NaN nor an infinity is below: both count as the largest.
        usable = means[0] < _LARGEST_VARIANCE
        variances.pathwise[name] = tf.where(usable, means[0], _LARGEST_VARIANCE)
        variances.es[name] = means[1]
        variances.shared[name] = tf.where(usable, means[2], 0.0)
    return variances


def _differences(samples):
    """Between neighbours: `[num_pairs // 2, ...]` from `[num_pairs, ...]`."""
    even = samples.shape[0] // 2 * 2
    return samples[0:even:2] - samples[1:even:2]


def _remember(memory, variances):
    """The memory with one more estimate. Blocks, so that what was rare and huge is forgotten."""
    full = memory.count >= _BLOCK
    older = tf.nest.map_structure(lambda n, o: tf.where(full, n, o), memory.newer, memory.older)
    newer = tf.nest.map_structure(lambda n, v: tf.where(full, 0.0, n) + v, memory.newer, variances)
    return Memory(older, newer, tf.where(full, 0.0, memory.count) + 1.0)
