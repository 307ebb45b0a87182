"""Spectra from noisy correlation functions: a learned optimizer against other methods.

python benchmarks/analytic_continuation.py --out_dir=benchmarks/results/analytic_continuation

Meta-trains a small rule on the task `analytic_continuation`, on the error of the spectrum,
and compares on fresh spectra. What the other methods have to choose, learning rate and
moment to stop, chi2 that they aim at, is chosen by their error on tuning spectra, so that
all methods have learned from the same distribution. Times are processor time of this
process for one spectrum alone, without compilation.
"""

import functools
import json
import os
import tempfile
import time

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import rules
from meta import analytic_continuation, estimators, random, tasks, unroll
from meta.outer_loop import OuterLoop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/analytic_continuation", "For the results.")
_SECONDS = flags.DEFINE_float("seconds", 180.0, "Processor time of the meta-training.")
_STEPS = flags.DEFINE_integer("steps", 200, "Inner steps of the learned optimizer.", 1)
_SPECTRA = flags.DEFINE_integer("spectra", 64, "Fresh spectra to compare on.", 6)
_TUNING = flags.DEFINE_integer("tuning", 32, "Spectra to tune the other methods on.", 1)
_NOISE = flags.DEFINE_float("noise", 1e-3, "Standard deviation of the noise on G.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the meta-training.", 0)

TUNING_SEED, FRESH_SEED = 1001, 1002
SEGMENT = 20
ADAM_STEPS = 1000
LEARNING_RATES = 0.1 * 10.0 ** np.arange(-2.0, 1.5, 0.5)
TARGETS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Values of chi2 that maximum entropy and sparse modelling may aim at."""

_CHUNK = 20
_REPETITIONS = 5
_SMALLEST_DEFAULT = 1e-6


def meta_train(rule, task):
    """Theta after `--seconds` of processor time, and the record of the meta-training."""
    estimator = estimators.get(
        "pes",
        rule,
        task,
        num_particles=32,
        unroll_length=SEGMENT,
        horizon=_STEPS.value,
        outer_split="validation",
    )
    optimizer = keras.optimizers.Adam(3e-3)
    with tempfile.TemporaryDirectory() as scratch:
        loop = OuterLoop(estimator, optimizer, _SEED.value, scratch, checkpoint_every=10**9)
        spent, losses = 0.0, []
        loop.run(1)  # Compiles.
        while spent < _SECONDS.value:
            begin = time.process_time()
            loop.run(loop.step + _CHUNK)
            spent += time.process_time() - begin
            losses.append(loop.smoothed_loss)
        return loop.theta, {"seconds": spent, "outer_steps": loop.step, "meta_loss": losses}


def make_run(rule, task, thetas, num_steps, seed, problems):
    """A program without arguments that optimizes, and returns what comes of it.

    Args:
        rule, task: `UpdateRule`, `Task`.
        thetas: list of dicts, each of which works on all problems.
        num_steps: inner steps.
        seed: Python int; the same seed and number of problems means the same problems.
        problems: number of problems.

    Returns:
        A function that returns validation errors `[steps, thetas, problems]`, the answers
        `[thetas * problems, W]`, and their problems.
    """
    particles = {
        name: tf.constant(np.repeat([theta[name] for theta in thetas], problems, axis=0))
        for name in thetas[0]
    }

    @tf.function(jit_compile=True, autograph=False)
    def run(particles):
        inner = unroll.begin(rule, task, particles, random.seed(seed), problems, num_steps)
        trajectory, end = unroll.run(
            rule, task, particles, inner, random.seed(seed), num_steps, problems, "validation"
        )
        errors = tf.reshape(trajectory.outer_loss, (num_steps, len(thetas), problems))
        return errors, tf.nn.softmax(end.params[0]), end.setting

    return functools.partial(run.get_concrete_function(particles), particles)


def tune_adam(task):
    """Learning rate and number of steps with the smallest mean error on the tuning spectra."""
    candidates = [rules.Adam(learning_rate=float(rate)) for rate in LEARNING_RATES]
    thetas = [rule.init_theta() for rule in candidates]
    run = make_run(candidates[0], task, thetas, ADAM_STEPS, TUNING_SEED, _TUNING.value)
    errors = run()[0].numpy()
    mean = np.where(np.isfinite(errors), errors, np.inf).mean(axis=2)
    # The error of step i is measured before it: after i steps.
    steps, best = np.unravel_index(np.argmin(mean), mean.shape)
    return candidates[best], int(max(steps, 1))


def optimize(rule, theta, task, num_steps, seed, problems):
    """Answers `[problems, W]` and the problems, as float64 arrays."""
    _, answers, setting = make_run(rule, task, [theta], num_steps, seed, problems)()
    drawn = {name: np.asarray(x, np.float64) for name, x in setting.items()}
    return np.asarray(answers, np.float64), drawn


def seconds_alone(rule, theta, task, num_steps):
    """Processor time for one spectrum."""
    run = make_run(rule, task, [theta], num_steps, FRESH_SEED, 1)
    run()
    begin = time.process_time()
    for _ in range(_REPETITIONS):
        run()[1].numpy()
    return (time.process_time() - begin) / _REPETITIONS


def solve(method, drawn, **options):
    """Answers of a method without learning, and its processor time for one spectrum.

    Args:
        method: function of `meta.analytic_continuation`.
        drawn: problems, as `optimize` returns them.
        **options: of the method; an array has an entry for each problem.
    """
    begin = time.process_time()
    answers = [
        method(
            drawn["kernel"][i],
            drawn["correlation"][i],
            float(drawn["noise"][i]),
            **{k: v[i] if isinstance(v, np.ndarray) else v for k, v in options.items()},
        ).weights
        for i in range(len(drawn["spectrum"]))
    ]
    return np.array(answers), (time.process_time() - begin) / len(answers)


def errors_of(answers, drawn):
    """`|answer - spectrum|^2 / |spectrum|^2` of each problem."""
    distance = np.square(answers - drawn["spectrum"]).sum(axis=1)
    return distance / np.square(drawn["spectrum"]).sum(axis=1)


def tune(method, drawn, candidates, **options):
    """The options with the smallest mean error."""
    means = [
        errors_of(solve(method, drawn, **candidate, **options)[0], drawn).mean()
        for candidate in candidates
    ]
    return candidates[int(np.argmin(means))]


def as_default(answers):
    """Answers as default models: nothing is impossible."""
    return np.maximum(answers, _SMALLEST_DEFAULT)


def compare(task, rule, theta):
    """Answers of all methods on fresh spectra.

    Returns:
        Dict from name to `(answers, seconds for one spectrum, what was tuned)`; the problems.
    """
    entropy, sparse = analytic_continuation.maximum_entropy, analytic_continuation.sparse_modelling
    steps, fresh = _STEPS.value, _SPECTRA.value
    for_tuning, tuning = optimize(rule, theta, task, steps, TUNING_SEED, _TUNING.value)
    learned, drawn = optimize(rule, theta, task, steps, FRESH_SEED, fresh)
    learned_seconds = seconds_alone(rule, theta, task, steps)
    results = {"learned optimizer": (learned, learned_seconds, {"steps": steps})}

    adam, adam_steps = tune_adam(task)
    options = {"learning_rate": adam.learning_rate, "steps": adam_steps}
    answers, _ = optimize(adam, adam.init_theta(), task, adam_steps, FRESH_SEED, fresh)
    seconds = seconds_alone(adam, adam.init_theta(), task, adam_steps)
    results["Adam, stopped early"] = answers, seconds, options

    aims = [{"choice": "discrepancy", "target": target} for target in TARGETS]
    aims.append({"choice": "evidence"})
    options = tune(entropy, tuning, aims)
    results["maximum entropy"] = (*solve(entropy, drawn, **options), options)
    options = tune(sparse, tuning, [{"target": target} for target in TARGETS])
    results["sparse modelling"] = (*solve(sparse, drawn, **options), options)
    options = tune(entropy, tuning, aims, default=as_default(for_tuning))
    answers, seconds = solve(entropy, drawn, **options, default=as_default(learned))
    name = "maximum entropy, learned default"
    results[name] = answers, seconds + learned_seconds, options

    flat = np.full_like(learned, 1 / learned.shape[1])
    results["flat spectrum"] = flat, 0.0, {}
    mean = np.tile(tuning["spectrum"].mean(axis=0), (fresh, 1))
    results["mean of the tuning spectra"] = mean, 0.0, {}
    return results, drawn


def summarise(results, drawn):
    """The figures of each method: dict that JSON can hold."""
    learned = errors_of(results["learned optimizer"][0], drawn)
    summary = {}
    for name, (answers, seconds, options) in results.items():
        errors = errors_of(answers, drawn)
        fitted = np.einsum("ptw,pw->pt", drawn["kernel"], answers)
        chi2 = np.square((fitted - drawn["correlation"]) / drawn["noise"][:, None]).mean(axis=1)
        difference = errors - learned
        summary[name] = {
            "error_mean": errors.mean(),
            "error_std": errors.std(ddof=1),
            "error_median": np.median(errors),
            "above_learned_mean": difference.mean(),
            "above_learned_standard_error": difference.std(ddof=1) / len(errors) ** 0.5,
            "chi2_median": np.median(chi2),
            "seconds": seconds,
        }
        summary[name] = {k: float(v) for k, v in summary[name].items()} | {"tuned": options}
    return summary


def plot(results, drawn, frequencies, file):
    """Draws the first six spectra with the answers of all methods."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained", sharex=True)
    width = frequencies[1] - frequencies[0]
    names = [
        name for name in results if name not in ("flat spectrum", "mean of the tuning spectra")
    ]
    for i, axis in enumerate(axes.flat):
        axis.fill_between(
            frequencies, drawn["spectrum"][i] / width, color="0.85", label="true spectrum"
        )
        for j, name in enumerate(names):
            style = {"color": f"C{j}", "lw": 2.2 if j == 0 else 1.3}
            style["ls"] = "--" if "default" in name else "-"
            axis.plot(frequencies, results[name][0][i] / width, label=name, **style)
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1.6 * drawn["spectrum"][i].max() / width)
    for axis in axes[1]:
        axis.set_xlabel("frequency w")
    for axis in axes[:, 0]:
        axis.set_ylabel("A(w)")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Six fresh spectra, noise {_NOISE.value:g} on G(tau)")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    task = tasks.get("analytic_continuation", noise=_NOISE.value)
    rule = rules.FactoredMLP(hidden_size=8, step_mult=0.1, exp_mult=0.1)
    theta, record = meta_train(rule, task)
    steps, loss = record["outer_steps"], record["meta_loss"][-1]
    print(f"Meta-training: {steps} outer steps, error {loss:.4f}", flush=True)
    results, drawn = compare(task, rule, theta)
    summary = {
        "task": task.get_config(),
        "rule": rules.serialize(rule),
        "meta_training": record,
        "fresh_spectra": summarise(results, drawn),
    }
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    path = os.path.join(_OUT_DIR.value, "analytic_continuation.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(summary, f, indent=1)
        f.write("\n")
    plot(results, drawn, task.frequencies, path.replace(".json", ".png"))
    for name, figures in summary["fresh_spectra"].items():
        error = f"{figures['error_mean']:.4f} ± {figures['error_std']:.4f}"
        print(f"{name:>34}: error {error}, {figures['seconds']:.4f} s, {figures['tuned']}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
