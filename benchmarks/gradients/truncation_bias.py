"""Bias of truncated meta-gradients on a toy, where the truth has a closed form.

python benchmarks/gradients/truncation_bias.py --out_dir=benchmarks/results/gradients

The inner problem is a noisy quadratic with a steep and a flat direction; theta is the
logarithm of a learning rate. Over 128 steps, the flat direction wants a large one. In
a short segment it hardly moves, and what is seen is the noise in the steep one.
"""

import dataclasses
import os

import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import rules
from meta import estimators, provenance, random, smoke, tasks

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/gradients", "For the picture and the figures.")
_ESTIMATES = flags.DEFINE_integer("estimates", 32, "Horizons measured per point.", lower_bound=2)
_ESTIMATORS = flags.DEFINE_list("estimators", list(estimators.NAMES), "Which.")
_SEGMENTS = flags.DEFINE_list("segments", "1,2,4,8,16,32,64,128", "Steps; they divide 128.")
smoke.define(estimates=2, estimators=["es", "pes"], segments=["8", "128"])

HORIZON = 128
LEARNING_RATE = 0.2
STDDEV = 0.1
_CURVATURES = np.array([1.0, 0.01])
_STARTS = np.array([1.0, 10.0])
_NOISES = np.array([1.0, 0.0])
_PARTICLES = 2048
_NODES = 30


@dataclasses.dataclass(frozen=True)
class GradientDescent(rules.UpdateRule):
    """Its learning rate, as a logarithm, is all there is to learn."""

    def theta_shapes(self):
        return {"log_learning_rate": ()}

    def init_theta(self, seed=0):
        return {"log_learning_rate": np.float32(np.log(LEARNING_RATE))}

    def init_tensor_state(self, theta, param, name):
        return {}

    def update_tensor(self, theta, state, message, grad, param, signals):
        return -tf.exp(theta["log_learning_rate"])[:, None] * grad, state


class NoisyQuadratic(tasks.Task):
    """`sum_i h_i (x_i - c_i)^2 / 2`, the c_i normal noise that every batch draws anew."""

    loss_clip = 1e6  # The closed form knows no clipping.

    def init(self, seed, num, setting):
        return [tf.tile(tf.constant(_STARTS[None], tf.float32), (num, 1))]

    def batch(self, split, seed, num, setting):
        return tf.constant(_NOISES, tf.float32) * random.normal((num, 2), seed)

    def loss(self, params, data, setting):
        curvatures = tf.constant(_CURVATURES, tf.float32)
        return 0.5 * tf.reduce_sum(curvatures * tf.square(params[0] - data), axis=1)


def exact_gradients(length, log_learning_rate):
    """Of the smoothed mean loss over the horizon: the whole and the truncated gradient.

    The second moments of the parameters follow `v <- a v + b`; their expectations
    over the perturbations, and derivatives, are Gauss-Hermite sums.

    Args:
        length: inner steps of a segment.
        log_learning_rate: theta.

    Returns:
        Two floats.
    """
    e, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    e, weights = STDDEV * e, weights / weights.sum()
    rate = np.exp(log_learning_rate + e)[:, None]
    shrink = (1 - rate * _CURVATURES) ** 2
    noise = (rate * _CURVATURES * _NOISES) ** 2
    # The loss and the end of a segment, as functions `slope v + offset` of its start.
    slope, offset = np.ones_like(shrink), np.zeros_like(shrink)
    loss_slope, loss_offset = 0.0, 0.0
    for _ in range(length):
        loss_slope = loss_slope + 0.5 * _CURVATURES * slope / length
        loss_offset = loss_offset + 0.5 * _CURVATURES * (offset + _NOISES**2) / length
        slope, offset = shrink * slope, shrink * offset + noise
    derivative = weights * e / STDDEV**2
    slope_mean, slope_change = weights @ slope, derivative @ slope
    offset_mean, offset_change = weights @ offset, derivative @ offset
    v, change, truncated, whole = _STARTS**2, 0.0, 0.0, 0.0
    for _ in range(HORIZON // length):
        seen = (derivative @ loss_slope) @ v + (derivative @ loss_offset).sum()
        truncated += seen
        whole += seen + (weights @ loss_slope) @ (change * np.ones(2))
        change = slope_change * v + offset_change + slope_mean * change
        v = slope_mean * v + offset_mean
    return whole * length / HORIZON, truncated * length / HORIZON


def fixed_point(length, which):
    """The learning rate at which the whole (0) or truncated (1) gradient vanishes, or None."""
    logs = np.linspace(np.log(1e-4), np.log(1.9), 400)
    values = np.array([exact_gradients(length, x)[which] for x in logs])
    crossings = np.nonzero((values[:-1] < 0) & (values[1:] >= 0))[0]
    if length == 1 or not len(crossings):
        return None  # The first loss of a segment does not depend on the segment's theta.
    i = crossings[-1]
    return float(np.exp(np.interp(0.0, values[i : i + 2], logs[i : i + 2])))


def measure(name, length):
    """Mean and standard error of an estimator over whole horizons."""
    rule = GradientDescent()
    arguments = {"num_particles": _PARTICLES, "stddev": STDDEV, "horizon": HORIZON}
    estimator = estimators.get(name, rule, NoisyQuadratic(), unroll_length=length, **arguments)
    theta = {key: tf.constant(value) for key, value in rule.init_theta().items()}
    state = estimator.init_state(theta, random.seed(0))
    step = tf.function(estimator.estimate, jit_compile=True, autograph=False)
    count = HORIZON // length
    gradients = []
    for i in range(count * (1 + _ESTIMATES.value)):
        estimate = step(theta, state, random.fold_in(random.seed(1), i))
        state = estimate.state
        gradients.append(float(estimate.gradient["log_learning_rate"]))
    means = np.reshape(gradients[count:], (-1, count)).mean(axis=1)
    return {"mean": means.mean(), "standard_error": means.std(ddof=1) / len(means) ** 0.5}


def plot(results, file):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    lengths = results["segment_lengths"]
    left.axhline(0, color="0.7", lw=0.8)
    left.plot(lengths, results["whole"], "k-", label="whole gradient, exact")
    left.plot(lengths, results["truncated"], "k--", label="truncated gradient, exact")
    for i, (name, points) in enumerate(results["estimates"].items()):
        x = np.array(lengths) * 1.06 ** (i - 2)
        y, error = ([p[key] for p in points] for key in ("mean", "standard_error"))
        style = {"fmt": "o^sDv"[i], "ms": 5, "color": f"C{i}", "capsize": 2}
        left.errorbar(x, y, 3 * np.array(error), label=f"{name}, ±3 standard errors", **style)
    left.set(xscale="log", xlabel="truncation length (inner steps)")
    left.set(ylabel="d(mean loss) / d(log learning rate)", title="Meta-gradient")
    left.legend()
    right.plot(lengths, results["fixed_point_whole"], "k-", label="whole gradient")
    right.plot(lengths, results["fixed_point_truncated"], "k--o", label="truncated gradient")
    right.set(xscale="log", ylim=(0, 0.4), xlabel="truncation length (inner steps)")
    right.set(ylabel="learning rate", title="Where meta-training would come to rest")
    right.legend()
    for axis in (left, right):
        axis.set_xticks(lengths, lengths)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.suptitle(f"Noisy quadratic, {HORIZON} inner steps, learning rate {LEARNING_RATE}")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    segments = [int(length) for length in _SEGMENTS.value]
    exact = [exact_gradients(length, np.log(LEARNING_RATE)) for length in segments]
    results = {
        "segment_lengths": segments,
        "whole": [whole for whole, _ in exact],
        "truncated": [truncated for _, truncated in exact],
        "fixed_point_whole": [fixed_point(HORIZON, 0)] * len(segments),
        "fixed_point_truncated": [fixed_point(length, 1) for length in segments],
        "estimates": {},
    }
    for name in _ESTIMATORS.value:
        results["estimates"][name] = [measure(name, length) for length in segments]
        for length, point in zip(segments, results["estimates"][name], strict=True):
            print(
                f"{name:>9} {length:4d} steps: {point['mean']:.4f} ± {point['standard_error']:.4f}"
            )
    provenance.write_results(os.path.join(_OUT_DIR.value, "truncation_bias.json"), results)
    plot(results, os.path.join(_OUT_DIR.value, "truncation_bias.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
