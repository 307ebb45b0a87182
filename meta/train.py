"""Meta-trains a learned optimizer, and exports it.

python -m meta.train --task=digits_mlp --rule=factored_mlp --out_dir=out/run

Run again with the same flags, it resumes.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
from typing import Any

from absl import app, flags

from export import command
from lopt_keras import compilation_cache, rules
from meta import estimators, json_flag, provenance, tasks
from meta.evaluation import comparison
from meta.tasks.base import Task
from meta.tasks.mixture import Mixture
from meta.training import config as training_config
from meta.training import curriculum, run, run_directory
from meta.training.config import MetaTrainingConfig
from meta.training.crew import CrewFailed

_TASK = flags.DEFINE_enum("task", "digits_mlp", tasks.NAMES, "Inner problem.")
flags.DEFINE_string("task_config", "{}", "The task's arguments, as JSON.")
flags.DEFINE_string("dataset", None, "tensorflow-datasets name. Default: the task's own.")
flags.DEFINE_string(
    "tasks",
    None,
    "A mixture of tasks instead of --task: a family, or a JSON object with some of families "
    "and large (objects from name to weight), num_tasks, milliseconds (time budget of a task's "
    "step), and score.",
)
flags.DEFINE_string(
    "augmentation",
    "{}",
    "How problems are disguised, as JSON: reparameterisation (task, tensor or parameter), "
    "loss_scale and gradient_noise ([low, high] each).",
)
flags.DEFINE_string("rule", "factored_mlp", f"Update rule, one of {rules.NAMES}.")
flags.DEFINE_string("rule_config", "{}", "The rule's arguments, as JSON.")
flags.DEFINE_string(
    "initial_weights",
    None,
    "Shipped weights, or a SavedModel, of the same rule to start from. Default: random.",
)
flags.DEFINE_string(
    "outer_state",
    None,
    "An outer_state.npz of an earlier run to go on from: theta, the outer optimizer and the outer "
    "step; inner problems begin anew. A checkpoint in OUT_DIR comes first.",
)
flags.DEFINE_enum("estimator", "pes", estimators.NAMES, "Estimator of the meta-gradient.")
flags.DEFINE_integer("num_outer_steps", 1000, "Outer steps.")
_UNROLL_LENGTH = flags.DEFINE_integer("unroll_length", 20, "Inner steps in each outer step.")
_HORIZON = flags.DEFINE_integer(
    "horizon",
    None,
    "Inner steps of a whole problem; if more than unroll_length, problems continue from one "
    "outer step to the next (only pes and nres see the whole gradient). Default: unroll_length.",
)
flags.DEFINE_integer(
    "segment_length",
    None,
    "Inner steps whose computation pathwise and merged keep at a time, to save memory. "
    "Default: unroll_length.",
)
flags.DEFINE_enum(
    "curriculum",
    "constant",
    curriculum.SCHEDULES,
    "Length of the problems: horizon, or growing from shortest_problem to horizon, or drawn "
    "between the two.",
)
flags.DEFINE_integer("shortest_problem", None, "Where a curriculum begins, in inner steps.")
flags.DEFINE_integer(
    "curriculum_steps",
    None,
    "Outer steps in which a linear or exponential curriculum reaches the horizon. "
    "Default: num_outer_steps.",
)
flags.DEFINE_integer(
    "num_particles",
    32,
    "Perturbed copies of theta: antithetic pairs.",
)
flags.DEFINE_float("es_stddev", 0.01, "Standard deviation of the perturbations.")
flags.DEFINE_string("outer_optimizer", "adam", "Any Keras optimizer, by name.")
flags.DEFINE_float("outer_learning_rate", 1e-3, "Its learning rate.")
flags.DEFINE_enum(
    "outer_learning_rate_schedule",
    "constant",
    training_config.SCHEDULES,
    "What it does after the warm-up: stay, or fall to zero at num_outer_steps.",
)
flags.DEFINE_integer("outer_warmup_steps", 0, "Outer steps in which it rises from zero.")
flags.DEFINE_float("outer_gradient_clip", 1.0, "Bound on each entry of the meta-gradient.")
flags.DEFINE_float(
    "outer_gradient_norm_clip", None, "Bound on its global norm, applied before that."
)
flags.DEFINE_enum(
    "outer_objective", "validation", estimators.OUTER_SPLITS, "Split of the outer loss."
)
flags.DEFINE_float(
    "outer_tail",
    1.0,
    "The outer loss is the mean over this fraction of a problem's steps, its last; less than 1 "
    "only where every estimate takes whole problems.",
)
flags.DEFINE_float(
    "horizon_known",
    1.0,
    "Fraction of problems of which the rule is told how many steps they have.",
)
flags.DEFINE_float(
    "validation_known",
    1.0,
    "Fraction of problems in which the rule hears validation losses, if it makes use of them.",
)
flags.DEFINE_string(
    "trained", ".*", "Regular expression of the entries of theta to train; others stay."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.")
flags.DEFINE_integer("checkpoint_every", 100, "Outer steps between checkpoints.")
flags.DEFINE_integer(
    "num_shards",
    1,
    "Estimates in each outer step, each with num_particles particles and problems of its own.",
)
flags.DEFINE_integer(
    "num_workers", 0, "Processes on Ray that compute the shards; 0 for this process."
)
flags.DEFINE_string(
    "ray_address", None, "Of a Ray cluster, or auto. Default: workers on this machine."
)
flags.DEFINE_integer(
    "max_staleness",
    None,
    "How many outer steps old the theta of an estimate may be. Then nobody waits for slow "
    "workers, and theta depends on timing. Default: each outer step waits for all its shards.",
)
_LEARNING_CURVE = flags.DEFINE_bool(
    "learning_curve", True, "Whether to compare with tuned baselines at the end."
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", None, "Directory of the run: checkpoints, summaries, picture.", required=True
)
flags.DEFINE_string("export_dir", None, "SavedModel. Default: OUT_DIR/export.")
flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Directory of compiled programs: the next run need not compile them."
)

for _old, _new in run_directory.RENAMED.items():
    flags.DEFINE_alias(_old, _new)

_WITHOUT_EFFECT_ON_THETA = (
    "out_dir",
    "export_dir",
    "data_dir",
    "learning_curve",
    "compilation_cache",
    "num_workers",
    "ray_address",
)
_JSON = ("task_config", "augmentation", "rule_config")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    with contextlib.ExitStack() as stack:
        try:
            if _COMPILATION_CACHE.value is not None:
                run_directory.check_writable(_COMPILATION_CACHE.value, _COMPILATION_CACHE.name)
            training = stack.enter_context(run.started(_config()))
        except (TypeError, ValueError) as error:
            raise app.UsageError(str(error)) from error
        except CrewFailed as error:
            sys.exit(f"Error: {error}")
        try:
            training.finish()
        except CrewFailed as error:
            sys.exit(f"Error: {error}")
        if training.task is not None and _LEARNING_CURVE.value:
            _compare(training, training.task)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags, and sets up the compilation cache.

    TensorFlow reads its own settings once, when absl has parsed the flags.
    """
    rest = app.parse_flags_with_usage(argv)
    if _COMPILATION_CACHE.value is not None:
        compilation_cache.point_to(_COMPILATION_CACHE.value)
    return rest


def _config() -> MetaTrainingConfig:
    """The `MetaTrainingConfig` of the flags, which bear the names of its arguments."""
    known = {field.name for field in dataclasses.fields(MetaTrainingConfig)}
    given: dict[str, Any] = {f.name: f.value for f in _own_flags() if f.name in known}
    given |= {name: json_flag.parse(name, given[name]) for name in _JSON}
    if given["tasks"] is not None:
        given["tasks"] = Mixture.parse(given["tasks"])
    return MetaTrainingConfig(
        **given,
        command=shlex.join(["python", "-m", "meta.train", *sys.argv[1:]]),
        flags={f.name: f.value for f in _own_flags() if f.name not in _WITHOUT_EFFECT_ON_THETA},
    )


def _own_flags() -> list[flags.Flag]:
    """The flags of this file, without the names that they had before."""
    own = flags.FLAGS.get_flags_for_module(__name__)
    return [flag for flag in own if flag.name not in run_directory.RENAMED]


def _compare(training: run.MetaTraining, task: Task) -> None:
    name, steps = _TASK.value, _HORIZON.value or _UNROLL_LENGTH.value
    print(f"Comparing with tuned baselines on {steps} steps of {name}...")
    theta = training.loop.theta
    curves = comparison.compare(task, training.rule, theta, steps, _SEED.value)
    picture = os.path.join(_OUT_DIR.value, "learning_curve.png")
    comparison.plot(curves, f"{name}, fresh seeds", picture)
    summary = comparison.summarise(curves)
    provenance.write_results(os.path.join(_OUT_DIR.value, "learning_curve.json"), summary)
    for optimizer, figures in summary.items():
        print(f"{optimizer:>30}: ", end="")
        print(", ".join(f"{k} {v['mean']:.4f} ± {v['std']:.4f}" for k, v in figures.items()))
    print(f"Picture: {picture}")


if __name__ == "__main__":
    command.run(main, flags_parser=_parse_flags)
