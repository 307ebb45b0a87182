"""Does meta-training on more tasks generalise better?

python benchmarks/tasks/generalisation.py --out_dir=benchmarks/results/tasks

The same rule is meta-trained on 1, 10, 100 and 1000 tasks, each time for the same number of
outer steps, which are as many inner steps, then it trains held-out tasks. Each seed begins
with another family. What it reaches is measured as a score: 1 is the validation loss at the
start, 0 that of Adam with the best of 9 learning rates for this very task, after as many
steps. Every run is resumed where it was, and evaluations are kept.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os

import matplotlib
import numpy as np
import tqdm
from absl import app, flags, logging

from lopt_keras import rules
from meta import provenance, random, smoke, tasks
from meta.inner.training import InnerTraining
from meta.tasks.mixture import Mixture, scored
from meta.tasks.sampling import distribution
from meta.tasks.scoring import references
from meta.training.config import MetaTrainingConfig
from meta.training.run import train

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COUNTS = flags.DEFINE_list("counts", ["1", "10", "100", "1000"], "Numbers of tasks.")
_FAMILIES = flags.DEFINE_list("families", None, "Families to train on. Default: all.")
_MILLISECONDS = flags.DEFINE_float("milliseconds", None, "Time budget of a task's step.")
_OUTER_STEPS = flags.DEFINE_integer("outer_steps", 2000, "Of each meta-training.", lower_bound=1)
_SEEDS = flags.DEFINE_list("seeds", ["3", "3", "1", "1"], "Meta-trainings of each number.")
_HELD_OUT = flags.DEFINE_integer("held_out", 24, "Tasks of each held-out set.", lower_bound=1)
_RUNS_DIR = flags.DEFINE_string("runs_dir", "out/generalisation", "Checkpoints and evaluations.")
_OUT_DIR = flags.DEFINE_string("out_dir", "out/tasks", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(counts=["1"], seeds=["1"], families=["quadratic"], outer_steps=1, held_out=1)

RULE = rules.FactoredMLP(hidden_size=8, step_mult=0.01, exp_mult=0.1)
HELD_OUT_SETS = ("heldout_easy", "heldout_families")
_UNROLL_LENGTH, _PARTICLES, _STDDEV, _OUTER_RATE = 20, 16, 0.01, 1e-3
_PROBLEMS = 4
_CHECKPOINT_EVERY = 50
_LARGEST_SCORE = 3.0


def meta_train_all(counts):
    """`(theta, figures)` of each of some `(number of tasks, seed)`: list.

    One process after the other, as XLA keeps every program until its process ends.
    """
    work = [
        (
            Mixture(families(seed), count, _MILLISECONDS.value),
            seed,
            _OUTER_STEPS.value,
            os.path.join(_RUNS_DIR.value, f"{count}_{seed}"),
            _DATA_DIR.value,
        )
        for count, seed in counts
    ]
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        return list(pool.map(meta_train, *zip(*work, strict=True)))


def meta_train(mixture, seed, outer_steps, out_dir, data_dir):
    """Theta after meta-training on a mixture, and what it took: dict."""
    config = MetaTrainingConfig(
        out_dir,
        rule=RULE,
        tasks=mixture,
        num_outer_steps=outer_steps,
        num_particles=_PARTICLES,
        es_stddev=_STDDEV,
        unroll_length=_UNROLL_LENGTH,
        horizon=references.NUM_STEPS,
        outer_learning_rate=_OUTER_RATE,
        seed=seed,
        checkpoint_every=_CHECKPOINT_EVERY,
        data_dir=data_dir,
    )
    training = train(config)
    loop = training.loop
    return loop.theta, {
        "tasks": int(sum(training.weights.values())),
        "programs": len(training.weights),
        "outer_steps": loop.step,
        "seconds": loop.seconds,
        "compile_seconds": loop.compile_seconds,
    }


def families(seed):
    """Those to train on, equally: from one that differs between seeds."""
    names = _FAMILIES.value or distribution.families("train")
    first = seed * len(names) // 3 % len(names)
    return dict.fromkeys([*names[first:], *names[:first]], 1.0)


def held_out_tasks(of):
    """The first `_HELD_OUT` tasks of the set that Adam trains: list of `(Config, Task)`."""
    configs = [tasks.sample_config(seed, of) for seed in range(2 * _HELD_OUT.value)]
    known = references.MEASURED.complete(configs, _DATA_DIR.value)
    chosen = [c for c, reference in zip(configs, known, strict=True) if reference.is_trainable]
    return [(c, scored([c], "loss", _DATA_DIR.value)) for c in chosen[: _HELD_OUT.value]]


def evaluate(config, task, thetas):
    """The score of each theta at the end of a held-out task, mean over problems: list.

    The last tenth of the steps counts, and each score at most 3.
    """
    digest = hashlib.sha256(config.key.encode())
    for theta in thetas:
        for name in sorted(theta):
            digest.update(theta[name].tobytes())
    file = os.path.join(_RUNS_DIR.value, "evaluations", f"{digest.hexdigest()[:20]}.json")
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f:
            return json.load(f)
    steps, seed = references.NUM_STEPS, random.seed(1)
    training = InnerTraining(task, RULE, len(thetas), _PROBLEMS, steps, signals_known=True)
    curves = training(thetas, seed)
    scores = np.stack([own.held_out[-steps // 10 :] for own in curves], axis=1)
    scores = np.where(np.isfinite(scores), scores, _LARGEST_SCORE)
    scores = np.clip(scores, -_LARGEST_SCORE, _LARGEST_SCORE).mean(axis=(0, 2)).tolist()
    os.makedirs(os.path.dirname(file), exist_ok=True)
    provenance.write_json(file, scores)
    return scores


def interval(scores, rng):
    """Mean over tasks and seeds, and its 95 % interval from a bootstrap over tasks.

    Args:
        scores: `[seeds, tasks]`.
        rng: `numpy.random.Generator`.
    """
    means = scores.mean(axis=0)
    drawn = rng.choice(means, (2000, len(means)))
    return [float(means.mean()), *np.quantile(drawn.mean(axis=1), [0.025, 0.975]).tolist()]


def plot(results, file):
    figure, axis = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    for i, (of, found) in enumerate(results["scores"].items()):
        counts = np.array([int(count) for count in found])
        middle, low, high = np.array([f["mean"] for f in found.values()]).T
        axis.errorbar(
            counts * 1.03**i, middle, [middle - low, high - middle], label=of, marker="o", capsize=4
        )
    axis.axhline(0.0, color="black", lw=0.8, ls="--", label="tuned Adam")
    axis.set(
        xscale="log", xlabel="tasks of meta-training", ylabel="score at the end (less is better)"
    )
    axis.set_title("Mean over held-out tasks, with 95 % intervals")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def measure(of, trained, rng):
    """The scores of all on the tasks of a held-out set: dict from number of tasks.

    Args:
        of: name of the set.
        trained: dict from number of tasks to the list of thetas, one for each seed.
        rng: `numpy.random.Generator`.
    """
    held_out = held_out_tasks(of)
    thetas = [theta for runs in trained.values() for theta in runs]
    scores = np.array([evaluate(c, t, thetas) for c, t in tqdm.tqdm(held_out, unit="task")]).T
    measured, first = {}, 0
    for count, runs in trained.items():
        found, first = scores[first : first + len(runs)], first + len(runs)
        measured[count] = {
            "mean": interval(found, rng),
            "mean_of_each_seed": found.mean(axis=1).tolist(),
            "median": float(np.median(found)),
            "by_task": {c.key: found[:, i].tolist() for i, (c, _) in enumerate(held_out)},
        }
        middle, low, high = measured[count]["mean"]
        print(f"{of:>17}, {count:5d} tasks: mean score {middle:.3f} [{low:.3f}, {high:.3f}]")
    return measured


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    counts, seeds = ([int(x) for x in flag.value] for flag in (_COUNTS, _SEEDS))
    if len(counts) != len(seeds):
        raise app.UsageError(f"--seeds={seeds} must have a number for each of --counts={counts}.")
    pairs = [(c, s) for c, number in zip(counts, seeds, strict=True) for s in range(number)]
    runs = {count: [] for count in counts}
    for (count, _), found in zip(pairs, meta_train_all(pairs), strict=True):
        runs[count].append(found)
    trained = {count: [theta for theta, _ in found] for count, found in runs.items()}
    rng = np.random.default_rng(0)
    results = {
        "outer_steps": _OUTER_STEPS.value,
        "milliseconds": _MILLISECONDS.value,
        "runs": {count: [figures for _, figures in found] for count, found in runs.items()},
        "scores": {of: measure(of, trained, rng) for of in HELD_OUT_SETS},
    }
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    provenance.write_results(os.path.join(_OUT_DIR.value, "generalisation.json"), results)
    picture = os.path.join(_OUT_DIR.value, "generalisation.png")
    plot(results, picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
