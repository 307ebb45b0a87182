"""Which weights to merge pathwise and ES estimates with.

python benchmarks/gradients/merge_weights.py --out_dir=benchmarks/results/gradients

Draws meta-training after meta-training from the pairs that unroll_length.py has
measured: each estimate is 8 of them with replacement, so that the true mean is known,
and the bias of a way to choose the weights can be told from its variance.
"""

import os

import numpy as np
from absl import app, flags, logging

from meta import provenance, smoke

_SAMPLES = flags.DEFINE_string("samples", "out/gradients/pairs.npz", "From unroll_length.py.")
_OUT_DIR = flags.DEFINE_string("out_dir", "out/gradients", "For the figures.")
_ESTIMATES = flags.DEFINE_integer("estimates", 2000, "Estimates of each.", lower_bound=100)
smoke.define(estimates=100)

_PAIRS = 8
_BURN_IN = 200


def of_samples(history, pairs, scores):
    """Variances of the samples that are merged, from neighbours, as `Merged` takes them."""
    return tuple(np.square(x[::2] - x[1::2]).mean(axis=0) / 2 for x in (pairs, scores))


def earlier(memory):
    """Running averages over about `memory` estimates, without the current one."""

    def variances(history, pairs, scores):
        now = of_samples(history, pairs, scores)
        before = history.get("average", now)
        history["average"] = [o + (n - o) / memory for o, n in zip(before, now, strict=True)]
        return before

    return variances


def blocks(history, pairs, scores):
    """Sums over the current estimate and the 100 to 200 before it."""
    now = np.array(of_samples(history, pairs, scores))
    if history.get("count", 0) == 100:
        history |= {"older": history["newer"], "newer": 0.0, "count": 0}
    history["newer"] = history.get("newer", 0.0) + now
    history["count"] = history.get("count", 0) + 1
    return history.get("older", 0.0) + history["newer"]


def blocks_with_covariance(history, pairs, scores):
    """As `Merged`: the same sums, less the covariance unless that is negative."""
    v_rp, v_es = blocks(history, pairs, scores)
    v_sum, _ = blocks(history.setdefault("sum", {}), pairs + scores, scores)
    shared = np.clip((v_sum - v_rp - v_es) / 2, 0.0, np.minimum(v_rp, v_es))
    return v_rp - shared, v_es - shared


CHOICES = {
    "of the samples themselves": of_samples,
    "of about 10 estimates before": earlier(10),
    "of about 100 estimates before": earlier(100),
    "of this estimate and 100 to 200 before": blocks,
    "the same, less the covariance": blocks_with_covariance,
}


def compare(pairs, scores, rng):
    """Variance over the lower of pathwise and ES, and bias, for each choice of weights."""
    truth = scores.mean(axis=0)
    # Both are unbiased; in a finite sample their means differ, which is not what is asked here.
    pairs = pairs - pairs.mean(axis=0) + truth
    merged, pathwise, es = {name: [] for name in CHOICES}, [], []
    histories = {name: {} for name in CHOICES}
    for _ in range(_BURN_IN + _ESTIMATES.value):
        chosen = rng.integers(0, len(pairs), _PAIRS)
        p, s = pairs[chosen], scores[chosen]
        pathwise.append(p.mean(axis=0))
        es.append(s.mean(axis=0))
        for name, variances in CHOICES.items():
            v_rp, v_es = variances(histories[name], p, s)
            weight = v_rp / np.maximum(v_rp + v_es, 1e-300)
            merged[name].append(weight * es[-1] + (1 - weight) * pathwise[-1])
    lower = min(total_variance(x) for x in (pathwise, es))
    return {
        name: {
            "variance_over_lower": total_variance(x) / lower,
            "bias_over_truth": norm(np.mean(x[_BURN_IN:], axis=0) - truth) / norm(truth),
            "its_standard_error": (total_variance(x) / _ESTIMATES.value) ** 0.5 / norm(truth),
        }
        for name, x in merged.items()
    }


def total_variance(estimates):
    return float(np.var(estimates[_BURN_IN:], axis=0, ddof=1).sum())


def norm(x):
    return float(np.linalg.norm(x))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    samples = np.load(_SAMPLES.value)
    rng = np.random.default_rng(0)
    results = {}
    for length in samples["lengths"].tolist():
        flat = [samples[f"{key}_{length}"] for key in ("pairs", "scores")]
        pairs, scores = (x.reshape(-1, x.shape[-1]) for x in flat)
        finite = np.isfinite(pairs).all(axis=1)
        results[length] = compare(pairs[finite], scores[finite], rng)
        print(f"{length} steps")
        for name, figures in results[length].items():
            print(f"{name:>40}: {', '.join(f'{k} {v:.4g}' for k, v in figures.items())}")
    provenance.write_results(os.path.join(_OUT_DIR.value, "merge_weights.json"), results)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
