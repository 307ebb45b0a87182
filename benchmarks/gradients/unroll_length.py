"""Size and variance of meta-gradients against the length of the unroll.

python benchmarks/gradients/unroll_length.py --out_dir=benchmarks/results/gradients

Pathwise, ES and merged estimates come from the same particles. PES runs on problems
of the same length, in segments of 5 steps. The rule is an MLP with random weights and a
step large enough for training to be near chaos, or, with --weights, one that ships;
theta stays what it is. Every estimate counts, the first ones of `Merged` too: what is
rare has to count for all.
"""

import functools
import os

import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import pretrained, rules, saved_model
from meta import estimators, provenance, random, smoke, tasks

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/gradients", "For the pictures and the figures.")
_SAMPLES = flags.DEFINE_string("samples", "out/gradients/pairs.npz", "For merge_weights.py.")
_ESTIMATES = flags.DEFINE_integer("estimates", 200, "Estimates at each length.", lower_bound=10)
_LENGTHS = flags.DEFINE_list("lengths", "5,10,20,40,80,120,160,240", "Inner steps.")
_STEP_MULT = flags.DEFINE_float("step_mult", 0.1, "Scale of the rule's step.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Shipped weights to measure on their task, instead of a random rule."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(estimates=10, lengths=["5", "10"])

PES_SEGMENT = 5
NAMES = ("pathwise", "es", "merged", "pes")
_PARTICLES = 16
_RESAMPLES = 500


class Recorder(estimators.Merged):
    """Merged, which also shows what it was merged from, pair by pair."""

    def combine(self, samples, memory):
        gradient, memory, metrics = super().combine(samples, memory)
        n = self.num_pairs
        pairs = {name: (g[:n] + g[n:]) / 2 for name, g in samples.gradients.items()}
        scores = self.score_samples(samples.perturbations, samples.losses)
        return (
            gradient,
            memory,
            {**metrics, "pairs": flatten(pairs, n), "scores": flatten(scores, n)},
        )


def flatten(samples, count):
    """Dict of `[count, ...]` as one `[count, entries]`."""
    return tf.concat([tf.reshape(samples[name], (count, -1)) for name in sorted(samples)], axis=1)


@functools.cache
def compiled(estimator):
    """One program for all lengths."""
    return tf.function(estimator.estimate, jit_compile=True, autograph=False)


def collect(estimator, theta, length, num, skip=0):
    """`num` estimates after `skip` others: list of `Estimate`s, as NumPy arrays."""
    length, step = tf.constant(length), compiled(estimator)
    seed = random.fold_in(random.seed(1), length)
    state = estimator.init_state(theta, random.seed(0), length)
    collected = []
    for i in range(num + skip):
        estimate = step(theta, state, random.fold_in(seed, i), length)
        state = estimate.state
        if i >= skip:
            collected.append(
                tf.nest.map_structure(lambda x: x.numpy(), estimate._replace(state=()))
            )
    return collected


def gradients(collected):
    """`[estimates, entries]` float64."""
    flat = [flatten({k: v[None] for k, v in e.gradient.items()}, 1)[0] for e in collected]
    return np.array(flat, "float64")


def pathwise_estimates(pairs):
    """As `Pathwise`: the mean over the pairs that are finite. `[estimates, entries]`."""
    usable = np.isfinite(pairs).all(axis=2, keepdims=True)
    total = np.where(usable, pairs, 0.0).sum(axis=1)
    return total / np.maximum(usable.sum(axis=1), 1)


def describe(estimates, rng):
    """Norms and total variance of some estimators' estimates, with 95 % intervals.

    Args:
        estimates: dict of `[estimates, entries]`.
        rng: NumPy generator, for the bootstrap over estimates.
    """
    resampled = {name: [] for name in estimates}
    ratios = []
    for _ in range(_RESAMPLES):
        chosen = rng.integers(0, _ESTIMATES.value, _ESTIMATES.value)
        for name, x in estimates.items():
            resampled[name].append(x[chosen].var(axis=0, ddof=1).sum())
        lower = min(resampled["pathwise"][-1], resampled["es"][-1])
        ratios.append(resampled["merged"][-1] / lower)
    described = {}
    for name, x in estimates.items():
        norms = np.linalg.norm(x, axis=1)
        described[name] = {
            "norm_quantiles_5_50_95": np.quantile(norms, [0.05, 0.5, 0.95]).tolist(),
            "variance": x.var(axis=0, ddof=1).sum(),
            "variance_interval": np.quantile(resampled[name], [0.025, 0.975]).tolist(),
        }
    lower = min(described["pathwise"]["variance"], described["es"]["variance"])
    described["merged_over_lower"] = {
        "ratio": described["merged"]["variance"] / lower,
        "interval": np.quantile(ratios, [0.025, 0.975]).tolist(),
    }
    return described


def measure(recorder, pes, theta, length, rng):
    """The figures for one length, and the pairs' samples."""
    together = collect(recorder, theta, length, _ESTIMATES.value)
    pairs, scores = (
        np.array([e.metrics[key] for e in together], "float64") for key in ("pairs", "scores")
    )
    apart = collect(pes, theta, length, _ESTIMATES.value, length // PES_SEGMENT)
    estimates = {
        "pathwise": pathwise_estimates(pairs),
        "es": scores.mean(axis=1),
        "merged": gradients(together),
        "pes": gradients(apart),
    }
    figures = describe(estimates, rng)
    for key in ("es_weight", "diverged", "excluded", "meta_loss"):
        figures[key] = float(np.mean([e.metrics[key] for e in together]))
    return figures, pairs, scores


def plot_norms(lengths, results, title, file):
    figure, axis = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for i, name in enumerate(NAMES):
        points = [results[length][name]["norm_quantiles_5_50_95"] for length in lengths]
        low, middle, high = np.transpose(points)
        axis.plot(lengths, middle, "o-", color=f"C{i}", label=name, ms=4)
        axis.fill_between(lengths, low, high, color=f"C{i}", alpha=0.15, lw=0)
    axis.set_ylabel("norm of an estimate (median, 5 % to 95 %)")
    _finish(figure, axis, lengths, f"Meta-gradient norm: {title}", file)


def plot_variances(lengths, results, title, file):
    shape = {"figsize": (7.5, 7), "height_ratios": (3, 1.3), "sharex": True}
    figure, (axis, below) = plt.subplots(2, 1, layout="constrained", **shape)
    for i, name in enumerate(NAMES):
        points = [results[length][name] for length in lengths]
        variance = np.array([p["variance"] for p in points])
        low, high = np.transpose([p["variance_interval"] for p in points])
        style = {"marker": "o", "ms": 4}
        if name == "merged":  # It runs along the lower of the two: drawn wide, behind them.
            style = {"lw": 7, "alpha": 0.45, "zorder": 1}
        axis.plot(lengths, variance, color=f"C{i}", label=name, **style)
        axis.fill_between(lengths, low, high, color=f"C{i}", alpha=0.2, lw=0)
        if name == "pes":
            fraction = PES_SEGMENT / np.array(lengths)
            label = "pes, at equal inner steps"
            axis.plot(lengths, fraction * variance, ":", color=f"C{i}", label=label)
    smooth = max(results[length]["pes"]["variance"] for length in lengths)
    axis.set(yscale="log", ylabel="variance of an estimate, summed over theta (95 %)")
    axis.set_ylim(top=1e4 * smooth)  # Pathwise goes on far beyond.
    axis.grid(alpha=0.3)
    axis.legend()
    ratios = [results[length]["merged_over_lower"] for length in lengths]
    middle = np.array([r["ratio"] for r in ratios])
    error = np.abs(np.transpose([r["interval"] for r in ratios]) - middle)
    below.errorbar(lengths, middle, error, fmt="o", color="C2", capsize=3)
    below.axhline(1.0, color="0.4", lw=0.8)
    below.set_ylabel("merged / lower of\npathwise and es (95 %)")
    axis.set_title(f"Variance: {title}")
    _finish(figure, below, lengths, "", file)


def _finish(figure, axis, lengths, title, file):
    axis.set(xscale="log", xlabel="unroll length (inner steps)", title=title)
    axis.set_xticks(lengths, lengths)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    if title:
        axis.set_yscale("log")
        axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def choose():
    """Rule, theta, task, and what to call them."""
    if _WEIGHTS.value:
        rule, theta, _ = saved_model.read(pretrained.find(_WEIGHTS.value))
        task = tasks.get("digits_mlp", data_dir=_DATA_DIR.value)
        return rule, theta, task, f"meta-trained weights {_WEIGHTS.value!r}"
    rule = rules.MLP(hidden_size=4, step_mult=_STEP_MULT.value, exp_mult=0.1)
    task = tasks.get("digits_mlp", hidden_units=[8], batch_size=32, data_dir=_DATA_DIR.value)
    return rule, rule.init_theta(), task, f"random MLP rule, step_mult {_STEP_MULT.value}"


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    lengths = [int(length) for length in _LENGTHS.value]
    rule, theta, task, setting = choose()
    theta = {name: tf.constant(value) for name, value in theta.items()}
    longest = {"num_particles": _PARTICLES, "horizon": max(lengths)}
    segment = min(20, max(lengths))
    recorder = Recorder(rule, task, unroll_length=max(lengths), segment_length=segment, **longest)
    pes = estimators.PES(rule, task, unroll_length=PES_SEGMENT, **longest)
    rng = np.random.default_rng(0)
    results, samples = {}, {}
    for length in lengths:
        results[length], pairs, scores = measure(recorder, pes, theta, length, rng)
        samples |= {f"pairs_{length}": pairs, f"scores_{length}": scores}
        figures = ", ".join(f"{name} {results[length][name]['variance']:.3g}" for name in NAMES)
        ratio = results[length]["merged_over_lower"]["interval"]
        print(f"{length:4d} steps: variance {figures}, 95 % of merged/lower {ratio}", flush=True)
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    os.makedirs(os.path.dirname(_SAMPLES.value) or ".", exist_ok=True)
    np.savez(_SAMPLES.value, lengths=lengths, **samples)
    provenance.write_results(os.path.join(_OUT_DIR.value, "unroll_length.json"), results)
    setting = f"{setting}, {_PARTICLES} particles"
    plot_norms(lengths, results, setting, os.path.join(_OUT_DIR.value, "gradient_norm.png"))
    file = os.path.join(_OUT_DIR.value, "gradient_variance.png")
    plot_variances(lengths, results, setting, file)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
