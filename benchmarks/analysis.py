"""What recurrent rules have learned on three tasks, and whether they beat tuned optimizers.

python benchmarks/analysis.py --out_dir=benchmarks/results/analysis

The tasks are those of Maheswaranathan et al., arXiv 2011.02159: linear regression, the Rosenbrock
function and two moons. OUT_DIR/TASK/weights are the weights to look at, of
`meta.train --flagfile=benchmarks/recurrent/TASK.flags`. Momentum, RMSprop and Adam are tuned by
random search over all their hyperparameters. Writes analysis.json and pictures of losses and
mechanisms.
"""

import os

import numpy as np
from absl import app, flags

from export import command
from lopt_keras import rules, saved_model
from meta import provenance, random, smoke, tasks
from meta.analysis import plots, report
from meta.analysis.study import Study
from meta.analysis.subject import Subject
from meta.inner.training import InnerTraining

_OUT_DIR = flags.DEFINE_string("out_dir", None, "Where weights are, and results go.", required=True)
_TASKS = flags.DEFINE_list("tasks", ["quadratic", "rosenbrock", "two_moons"], "Of the three.")
_STEPS = flags.DEFINE_integer("steps", 200, "Of each training.", lower_bound=20)
_CANDIDATES = flags.DEFINE_integer("candidates", 100, "Of the random search.", lower_bound=1)
_TUNING_SEEDS = flags.DEFINE_integer("tuning_seeds", 16, "Problems to tune on.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 128, "Fresh problems.", lower_bound=2)
smoke.define(tasks=["quadratic"], steps=20, candidates=2, tuning_seeds=1, seeds=2)

_LEARNED = "recurrent"
_MECHANISMS = ("momentum", "clipping", "schedule", "adaptation")


def _log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


BASELINES = {
    "momentum": lambda rng: rules.SGD(
        _log_uniform(rng, 1e-4, 10.0), 1.0 - _log_uniform(rng, 1e-3, 1.0)
    ),
    "RMSprop": lambda rng: rules.RMSprop(
        _log_uniform(rng, 1e-4, 1.0),
        1.0 - _log_uniform(rng, 1e-4, 0.5),
        _log_uniform(rng, 1e-10, 1e-1),
    ),
    "Adam": lambda rng: rules.Adam(
        _log_uniform(rng, 1e-4, 3.0),
        1.0 - _log_uniform(rng, 1e-3, 1.0),
        1.0 - _log_uniform(rng, 1e-4, 0.5),
        _log_uniform(rng, 1e-10, 1e-1),
    ),
}
"""By name, functions that draw a rule with all its hyperparameters."""


def tuned(name, task, num_steps, candidates, problems):
    """The best of some random draws of a baseline, by mean training loss over a run."""
    rng = np.random.default_rng(0)
    drawn = [BASELINES[name](rng) for _ in range(candidates)]
    thetas = [rule.init_theta() for rule in drawn]
    seed = random.fold_in(random.seed(0), 1)
    train = InnerTraining(task, drawn[0], candidates, problems, num_steps, True, split="train")
    means = np.array([curves.train.mean() for curves in train(thetas, seed)])
    return drawn[int(np.argmin(np.where(np.isfinite(means), means, np.inf)))]


def race(task, subjects, num_steps, problems):
    """Training losses on the same fresh problems: dict from name to `[steps, problems]`."""
    seed = random.fold_in(random.seed(0), 2)
    return {
        subject.name: InnerTraining(
            task, subject.rule, 1, problems, num_steps, True, split="train"
        )([subject.theta], seed)[0].train
        for subject in subjects
    }


def figures(losses):
    """Mean over the run and loss at the end: means, standard errors, and problems won."""
    means = {name: x.mean(axis=0) for name, x in losses.items()}
    learned = means[_LEARNED]
    return {
        name: {
            "mean_loss": float(x.mean()),
            "mean_loss_standard_error": float(x.std(ddof=1) / len(x) ** 0.5),
            "final_loss_median": float(np.median(losses[name][-1])),
            "final_loss_mean": float(losses[name][-1].mean()),
            "share_of_problems_on_which_the_learned_rule_is_better": float(np.mean(learned < x)),
        }
        for name, x in means.items()
    }


def plot_losses(losses, file):
    """Mean and median loss against steps."""
    panels = [
        plots.Panel(
            f"{label} over problems",
            "step",
            "training loss",
            [plots.Curve(n, np.arange(len(x)), reduce(x, axis=1)) for n, x in losses.items()],
            log_y=True,
        )
        for label, reduce in (("mean", np.mean), ("median", np.median))
    ]
    plots.draw(file, panels)


def mechanisms(subject, task, adam, file):
    """Draws the paper's four mechanisms; returns what was found of each, dict."""
    study = Study(subject, task, _STEPS.value, num_problems=4, adam_rate=adam)
    found = {name: report.compute(study, name) for name in _MECHANISMS}
    panels = [
        panel
        for section in found.values()
        if not isinstance(section, str)
        for panel in section.panels
    ]
    plots.draw(file, panels)
    return {
        name: section if isinstance(section, str) else section.findings
        for name, section in found.items()
    }


def analyse(name):
    """Everything about one task: dict that JSON can hold."""
    folder = os.path.join(_OUT_DIR.value, name)
    rule, theta, metadata = saved_model.read(os.path.join(folder, "weights"))
    task = tasks.get(metadata["task"]["name"], **metadata["task"]["config"])
    sizes = _STEPS.value, _CANDIDATES.value, _TUNING_SEEDS.value
    baselines = {baseline: tuned(baseline, task, *sizes) for baseline in BASELINES}
    subjects = [Subject(_LEARNED, rule, theta)]
    subjects += [Subject.hand_designed(*pair) for pair in baselines.items()]
    losses = race(task, subjects, _STEPS.value, _SEEDS.value)
    plot_losses(losses, os.path.join(folder, "losses.png"))
    adam = baselines["Adam"].learning_rate
    return {
        "losses": figures(losses),
        "tuned": {baseline: rule.get_config() for baseline, rule in baselines.items()},
        "findings": mechanisms(subjects[0], task, adam, os.path.join(folder, "mechanisms.png")),
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    for name in _TASKS.value:
        found = analyse(name)
        file = os.path.join(_OUT_DIR.value, name, "analysis.json")
        provenance.write_results(file, found)
        print(f"{name}: mean training loss over {_STEPS.value} steps, {_SEEDS.value} problems")
        for optimizer, own in found["losses"].items():
            print(
                f"  {optimizer:>10}: {own['mean_loss']:.4g} ± "
                f"{own['mean_loss_standard_error']:.2g}, median at the end "
                f"{own['final_loss_median']:.3g}"
            )


if __name__ == "__main__":
    command.run(main)
