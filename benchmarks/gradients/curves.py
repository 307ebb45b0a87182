"""Meta-training with each estimator, at equal compute.

python benchmarks/gradients/curves.py --out_dir=benchmarks/results/gradients

Compute is processor time of this process (meant for one core), without compilation
and evaluation. All start from the same random MLP rule, with the same outer optimizer;
theta is evaluated, unperturbed, on problems of its own.
"""

import os
import time

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import rules
from meta import estimators, provenance, random, smoke, tasks
from meta.inner.training import InnerTraining

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/gradients", "For the picture and the figures.")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Processor time of each meta-training.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Meta-trainings with each.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.01, "Of the outer Adam.")
_STEP_MULT = flags.DEFINE_float("step_mult", 0.1, "Scale of the rule's step.")
_ONLY = flags.DEFINE_multi_string("only", None, "Labels of estimators. Default: all.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(seconds=0.1, seeds=1, only=["es", "truncated es, segments of 10"])

HORIZON, SEGMENT = 200, 10
ESTIMATORS = {
    "pathwise": ("pathwise", HORIZON),
    "es": ("es", HORIZON),
    "merged": ("merged", HORIZON),
    "pes, segments of 10": ("pes", SEGMENT),
    "nres, segments of 10": ("nres", SEGMENT),
    "truncated pathwise, segments of 10": ("pathwise", SEGMENT),
    "truncated es, segments of 10": ("es", SEGMENT),
    "truncated merged, segments of 10": ("merged", SEGMENT),
}
"""Label: name of the estimator and its `unroll_length`."""

_EVALUATIONS = 20
_EVALUATED_PROBLEMS = 16


def make_step(estimator, optimizer, theta):
    """The outer step as one program, as `OuterLoop` takes it."""

    @tf.function(jit_compile=True, autograph=False)
    def step(state, seed):
        values = {name: tf.convert_to_tensor(x) for name, x in theta.items()}
        estimate = estimator.estimate(values, state, seed)
        gradient = [
            tf.clip_by_value(tf.where(tf.math.is_finite(g), g, 0.0), -1.0, 1.0)
            for g in (estimate.gradient[name] for name in theta)
        ]
        optimizer.apply(gradient, list(theta.values()))
        return estimate.state

    return step


def make_evaluation(rule, task):
    """Mean clipped training loss over the horizon, of a theta, on always the same problems."""
    training = InnerTraining(
        task, rule, 1, _EVALUATED_PROBLEMS, HORIZON, signals_known=False, split="train"
    )

    def evaluate(theta):
        (curves,) = training([theta], random.seed(999))
        losses = np.where(np.isfinite(curves.train), curves.train, task.loss_clip)
        return float(np.minimum(losses, task.loss_clip).mean())

    return evaluate


def train(rule, task, name, unroll_length, seed, evaluate):
    """One meta-training: seconds and losses at the evaluations, and its outer steps."""
    arguments = {"num_particles": 16, "unroll_length": unroll_length, "horizon": HORIZON}
    if name in ("pathwise", "merged"):
        arguments["segment_length"] = min(20, unroll_length)
    estimator = estimators.get(name, rule, task, **arguments)
    theta = {key: keras.Variable(x, name=key) for key, x in rule.init_theta(seed).items()}
    optimizer = keras.optimizers.Adam(_LEARNING_RATE.value)
    optimizer.build(list(theta.values()))
    step = make_step(estimator, optimizer, theta)

    def values():
        return {key: tf.convert_to_tensor(x) for key, x in theta.items()}

    state = estimator.init_state(values(), random.seed(seed))
    seconds, losses = [0.0], [evaluate(values())]
    spent, steps = 0.0, 0
    while spent < _SECONDS.value:
        begin = time.process_time()
        state = step(state, random.fold_in(random.seed(seed), steps))
        if steps:  # The first step compiles.
            spent += time.process_time() - begin
        steps += 1
        if spent >= _SECONDS.value * len(seconds) / _EVALUATIONS:
            seconds.append(spent)
            losses.append(evaluate(values()))
    return {"seconds": seconds, "meta_loss": losses, "outer_steps": steps}


def plot(results, file):
    figure, axis = plt.subplots(figsize=(10, 5), layout="constrained")
    for label, runs in results.items():
        i = list(ESTIMATORS).index(label)
        whole = not label.startswith("truncated")
        # The truncated three in the colours of the first three.
        style = {"color": f"C{i % 4}", "ls": "-" if whole else "--"}
        for j, run in enumerate(runs):
            name = label if j == 0 else None
            axis.plot(run["seconds"], run["meta_loss"], label=name, lw=1.6, **style)
    axis.set(xlabel="processor seconds on one core", yscale="log")
    axis.set_ylabel(f"mean training loss over {HORIZON} inner steps")
    setting = f"step_mult {_STEP_MULT.value:g}, outer Adam {_LEARNING_RATE.value:g}"
    figure.suptitle(f"Meta-training at equal compute, {setting}, one line a seed")
    axis.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right center", fontsize=9)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    rule = rules.MLP(hidden_size=4, step_mult=_STEP_MULT.value, exp_mult=0.1)
    task = tasks.get("digits_mlp", hidden_units=[8], batch_size=32, data_dir=_DATA_DIR.value)
    evaluate = make_evaluation(rule, task)
    results = {label: [] for label in _ONLY.value or ESTIMATORS}
    for seed in range(_SEEDS.value):
        for label in results:
            name, unroll_length = ESTIMATORS[label]
            run = train(rule, task, name, unroll_length, seed, evaluate)
            results[label].append(run)
            steps, final = run["outer_steps"], np.mean(run["meta_loss"][-5:])
            print(f"{label:>36}: {steps:6d} outer steps, loss {final:.4f}", flush=True)
    provenance.write_results(os.path.join(_OUT_DIR.value, "curves.json"), results)
    plot(results, os.path.join(_OUT_DIR.value, "curves.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
