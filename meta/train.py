"""Meta-trains a learned optimizer, and exports it.

python -m meta.train --task=digits_mlp --rule=factored_mlp --out_dir=out/run

Run again with the same flags, it resumes.
"""

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from typing import Any, NamedTuple

import keras
import numpy as np
from absl import app, flags

import export
from export import command
from lopt_keras import pretrained, rules, saved_model
from meta import estimators, json_flag, memory, tasks
from meta.evaluation import comparison
from meta.tasks.mixture import Mixture
from meta.tasks.sampling.augmentation import Augmented
from meta.training import curriculum, outer_state, run_directory
from meta.training.outer_loop import OuterLoop

_LARGEST = 2**31 - 1  # Counters and seeds are int32.

_TASK = flags.DEFINE_enum("task", "digits_mlp", tasks.NAMES, "Inner problem.")
_TASK_CONFIG = flags.DEFINE_string("task_config", "{}", "The task's arguments, as JSON.")
_DATASET = flags.DEFINE_string(
    "dataset", None, "tensorflow-datasets name. Default: the task's own."
)
_TASKS = flags.DEFINE_string(
    "tasks",
    None,
    "A mixture of tasks instead of --task: a family, or a JSON object with some of families "
    "(object from name to weight), num_tasks, and milliseconds (time budget of a task's step).",
)
_AUGMENTATION = flags.DEFINE_string(
    "augmentation",
    "{}",
    "How problems are disguised, as JSON: reparameterisation (task, tensor or parameter), "
    "loss_scale and gradient_noise ([low, high] each).",
)
_RULE = flags.DEFINE_string("rule", "factored_mlp", f"Update rule, one of {rules.NAMES}.")
_RULE_CONFIG = flags.DEFINE_string("rule_config", "{}", "The rule's arguments, as JSON.")
_INITIAL_WEIGHTS = flags.DEFINE_string(
    "initial_weights",
    None,
    "Shipped weights, or a SavedModel, of the same rule to start from. Default: random.",
)
_OUTER_STATE = flags.DEFINE_string(
    "outer_state",
    None,
    "An outer_state.npz of an earlier run to go on from: theta, the outer optimizer and the outer "
    "step; inner problems begin anew. A checkpoint in OUT_DIR comes first.",
)
_ESTIMATOR = flags.DEFINE_enum(
    "estimator", "pes", estimators.NAMES, "Estimator of the meta-gradient."
)
_NUM_OUTER_STEPS = flags.DEFINE_integer(
    "num_outer_steps", 1000, "Outer steps.", lower_bound=1, upper_bound=_LARGEST
)
_UNROLL_LENGTH = flags.DEFINE_integer(
    "unroll_length", 20, "Inner steps in each outer step.", lower_bound=1, upper_bound=_LARGEST
)
_HORIZON = flags.DEFINE_integer(
    "horizon",
    None,
    "Inner steps of a whole problem; if more than unroll_length, problems continue from one "
    "outer step to the next (only pes and nres see the whole gradient). Default: unroll_length.",
    lower_bound=1,
    upper_bound=_LARGEST,
)
_SEGMENT_LENGTH = flags.DEFINE_integer(
    "segment_length",
    None,
    "Inner steps whose computation pathwise and merged keep at a time, to save memory. "
    "Default: unroll_length.",
    lower_bound=1,
)
_CURRICULUM = flags.DEFINE_enum(
    "curriculum",
    "constant",
    curriculum.SCHEDULES,
    "Length of the problems: horizon, or growing from shortest_problem to horizon, or drawn "
    "between the two.",
)
_SHORTEST_PROBLEM = flags.DEFINE_integer(
    "shortest_problem", None, "Where a curriculum begins, in inner steps.", lower_bound=1
)
_CURRICULUM_STEPS = flags.DEFINE_integer(
    "curriculum_steps",
    None,
    "Outer steps in which a linear or exponential curriculum reaches the horizon. "
    "Default: num_outer_steps.",
    lower_bound=1,
)
_NUM_PARTICLES = flags.DEFINE_integer(
    "num_particles",
    32,
    "Perturbed copies of theta: antithetic pairs.",
    lower_bound=2,
    upper_bound=2**16,
)
_ES_STDDEV = flags.DEFINE_float("es_stddev", 0.01, "Standard deviation of the perturbations.")
_OUTER_OPTIMIZER = flags.DEFINE_string("outer_optimizer", "adam", "Any Keras optimizer, by name.")
_OUTER_LEARNING_RATE = flags.DEFINE_float("outer_learning_rate", 1e-3, "Its learning rate.")
_OUTER_LEARNING_RATE_SCHEDULE = flags.DEFINE_enum(
    "outer_learning_rate_schedule",
    "constant",
    ("constant", "cosine"),
    "What it does after the warm-up: stay, or fall to zero at num_outer_steps.",
)
_OUTER_WARMUP_STEPS = flags.DEFINE_integer(
    "outer_warmup_steps", 0, "Outer steps in which it rises from zero.", lower_bound=0
)
_OUTER_GRADIENT_CLIP = flags.DEFINE_float(
    "outer_gradient_clip", 1.0, "Bound on each entry of the meta-gradient."
)
_OUTER_GRADIENT_NORM_CLIP = flags.DEFINE_float(
    "outer_gradient_norm_clip", None, "Bound on its global norm, applied before that."
)
_OUTER_OBJECTIVE = flags.DEFINE_enum(
    "outer_objective", "validation", estimators.OUTER_SPLITS, "Split of the outer loss."
)
_OUTER_TAIL = flags.DEFINE_float(
    "outer_tail",
    1.0,
    "The outer loss is the mean over this fraction of a problem's steps, its last; less than 1 "
    "only where every estimate takes whole problems.",
)
_HORIZON_KNOWN = flags.DEFINE_float(
    "horizon_known",
    1.0,
    "Fraction of problems of which the rule is told how many steps they have.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_VALIDATION_TOLD = flags.DEFINE_float(
    "validation_known",
    1.0,
    "Fraction of problems in which the rule hears validation losses, if it makes use of them.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_TRAINED = flags.DEFINE_string(
    "trained", ".*", "Regular expression of the entries of theta to train; others stay."
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of everything random.", lower_bound=0, upper_bound=_LARGEST
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 100, "Outer steps between checkpoints.", lower_bound=1
)
_LEARNING_CURVE = flags.DEFINE_bool(
    "learning_curve", True, "Whether to compare with tuned baselines at the end."
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", None, "Directory of the run: checkpoints, summaries, picture.", required=True
)
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "SavedModel. Default: OUT_DIR/export.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Directory of compiled programs: the next run need not compile them."
)

_WITHOUT_EFFECT_ON_THETA = (
    "out_dir",
    "export_dir",
    "data_dir",
    "learning_curve",
    "compilation_cache",
)


def _is_positive(x):
    """With its square, in float32, in which all is computed."""
    with np.errstate(over="ignore"):
        return x is None or (x > 0 and 0 < np.square(np.float32(x)) < np.inf)


flags.register_validator("num_particles", lambda n: n % 2 == 0, "must be even (antithetic pairs).")
for _name in (
    "es_stddev",
    "outer_learning_rate",
    "outer_gradient_clip",
    "outer_gradient_norm_clip",
    "outer_tail",
):
    flags.register_validator(
        _name, _is_positive, "must be positive, and so must be its square in float32, and finite."
    )
for _name in ("horizon_known", "validation_known"):
    flags.register_validator(_name, lambda x: 0 <= x <= 1, "must be in [0, 1].")
flags.register_multi_flags_validator(
    ["outer_warmup_steps", "num_outer_steps"],
    lambda values: values["outer_warmup_steps"] < values["num_outer_steps"],
    "--outer_warmup_steps must be less than --num_outer_steps.",
)
flags.register_multi_flags_validator(
    ["horizon", "unroll_length"],
    lambda values: values["horizon"] is None or values["horizon"] % values["unroll_length"] == 0,
    "--horizon must be a multiple of --unroll_length.",
)


flags.register_multi_flags_validator(
    ["tasks", "task", "task_config", "dataset"],
    lambda values: (
        values["tasks"] is None
        or all(
            values[name] == flags.FLAGS[name].default for name in ("task", "task_config", "dataset")
        )
    ),
    "--tasks excludes --task, --task_config and --dataset.",
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    with contextlib.ExitStack() as stack:
        try:
            plan = _plan()
            stack.enter_context(run_directory.lock(_OUT_DIR.value))
            loop = _build(plan)
            step = _claim(plan, loop)
        except ValueError as error:
            raise app.UsageError(str(error)) from error
        if step:
            print(f"Resuming at outer step {step}.")
        loop.run(_NUM_OUTER_STEPS.value)
        print(f"Outer steps: {loop.seconds:.0f} s, compilation: {loop.compile_seconds:.0f} s.")
        try:
            export.export_checkpoint(_OUT_DIR.value, _export_dir(), overwrite=True)
        except OSError as error:
            raise OSError(
                f"{error}. The checkpoint of outer step {loop.step} is whole: run again to export."
            ) from error
        print(f"SavedModel: {_export_dir()}")
        if plan.task is not None and _LEARNING_CURVE.value:
            _compare(plan.task, plan.rule, loop.theta)


class _Plan(NamedTuple):
    """What the flags ask for, checked, before anything is written or takes long.

    Attributes:
        rule, optimizer, curriculum: of these classes.
        task: `Task`; None of a mixture.
        mixture: `Mixture`; None of a task.
        initial_theta: dict of arrays, or None.
        run: what `run.json` is to hold.
    """

    rule: Any
    optimizer: Any
    curriculum: Any
    task: Any
    mixture: Any
    initial_theta: Any
    run: Any


def _parse_flags(argv):
    """Parses the flags, and sets up the compilation cache.

    TensorFlow reads its own settings once, when absl has parsed the flags.
    """
    rest = app.parse_flags_with_usage(argv)
    if _COMPILATION_CACHE.value is not None:
        _keep_compiled_programs(_COMPILATION_CACHE.value)
    return rest


def _keep_compiled_programs(directory):
    given = os.environ.get("TF_XLA_FLAGS", "")
    os.environ["TF_XLA_FLAGS"] = f"{given} --tf_xla_persistent_cache_directory={directory}".strip()


def _plan():
    rule = rules.get(_RULE.value, **json_flag.parse("rule_config", _RULE_CONFIG.value))
    saved_model.check_rule_size(rule)
    optimizer, lengths = _outer_optimizer(), _curriculum()
    initial_theta, origin = _initial_theta(rule)
    run = {
        "command": shlex.join(["python", "-m", "meta.train", *sys.argv[1:]]),
        "flags": _deciding_flags(),
        "rule": rules.serialize(rule),
        "seed": _SEED.value,
        **origin,
    }
    if _OUTER_STATE.value is not None:
        outer_state.read(_OUTER_STATE.value)
        run["outer_state_sha256"] = outer_state.digest(_OUTER_STATE.value)
    _check_directories(run)
    task = mixture = None
    if _TASKS.value is not None:
        mixture = Mixture.parse(_TASKS.value)
        tried = next(mixture.candidates()).build(_DATA_DIR.value)
        run["tasks"] = dataclasses.asdict(mixture)
    else:
        task = tried = _single_task()
        run["task"] = {"name": _TASK.value, "config": task.get_config()}
    memory.check(tried, _NUM_PARTICLES.value)
    _estimator(rule, _augmented(tried))  # Of a mixture, the others differ in size only.
    return _Plan(rule, optimizer, lengths, task, mixture, initial_theta, run)


def _build(plan):
    """The `OuterLoop`, its programs traced."""
    if plan.mixture is None:
        programs = {"": (plan.task, 1.0)}
    else:
        plan.mixture.complete(_DATA_DIR.value)
        plan.run["references_sha256"] = plan.mixture.references_digest(_DATA_DIR.value)
        programs = plan.mixture.build(_DATA_DIR.value)
    training = {
        name: (_estimator(plan.rule, _augmented(task)), weight)
        for name, (task, weight) in programs.items()
    }
    return OuterLoop(
        training,
        plan.optimizer,
        _SEED.value,
        _OUT_DIR.value,
        _CHECKPOINT_EVERY.value,
        _OUTER_GRADIENT_CLIP.value,
        _OUTER_GRADIENT_NORM_CLIP.value,
        plan.curriculum,
        plan.initial_theta,
    )


def _claim(plan, loop):
    """Makes the directory this run's, and restores what it holds: the outer step."""
    is_begun = os.path.exists(os.path.join(_OUT_DIR.value, run_directory.RUN_FILE))
    run_directory.claim(_OUT_DIR.value, plan.run)
    step = loop.restore()
    if not step and _OUTER_STATE.value is not None:
        loop.go_on_from(_OUTER_STATE.value)
        return loop.step
    if is_begun and not step:
        print(f"There is no checkpoint in {_OUT_DIR.value}: starting at outer step 0.")
    return step


def _single_task():
    config = {"dataset": _DATASET.value, **json_flag.parse("task_config", _TASK_CONFIG.value)}
    try:
        return tasks.get(_TASK.value, data_dir=_DATA_DIR.value, **config)
    except (MemoryError, OverflowError, TypeError) as error:
        raise ValueError(
            f"`--task_config={_TASK_CONFIG.value}` does not fit the task {_TASK.value}: {error!r}"
        ) from error


def _augmented(task):
    augmentation = json_flag.parse("augmentation", _AUGMENTATION.value)
    if not augmentation:
        return task
    try:
        return Augmented(task, **augmentation)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`--augmentation={_AUGMENTATION.value}` does not fit: {error}") from error


def _estimator(rule, task):
    recomputation = {}
    if _SEGMENT_LENGTH.value is not None:
        recomputation["segment_length"] = _SEGMENT_LENGTH.value
    return estimators.get(
        _ESTIMATOR.value,
        rule,
        task,
        horizon=_horizon(),
        num_particles=_NUM_PARTICLES.value,
        stddev=_ES_STDDEV.value,
        unroll_length=_UNROLL_LENGTH.value,
        outer_split=_OUTER_OBJECTIVE.value,
        outer_tail=_OUTER_TAIL.value,
        horizon_known=_HORIZON_KNOWN.value,
        validation_known=_VALIDATION_TOLD.value,
        trained=_trained(rule),
        **recomputation,
    )


def _trained(rule):
    """The names of the entries of theta to train."""
    try:
        return [name for name in rule.theta_shapes() if re.fullmatch(_TRAINED.value, name)]
    except re.error as error:
        raise ValueError(
            f"`--trained` must be a regular expression. Received: {_TRAINED.value}: {error}"
        ) from error


def _outer_optimizer():
    config = {"learning_rate": _outer_learning_rate()}
    try:
        return keras.optimizers.get({"class_name": _OUTER_OPTIMIZER.value, "config": config})
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`--outer_optimizer` must be the name of a Keras optimizer. "
            f"Received: --outer_optimizer={_OUTER_OPTIMIZER.value}. {error}"
        ) from error


def _initial_theta(rule):
    """Where theta starts, or None, and what the run's metadata says of it."""
    name = _INITIAL_WEIGHTS.value
    if name is None:
        return None, {}
    path = pretrained.path(name) if name in pretrained.list_pretrained() else name
    try:
        _, theta, metadata = saved_model.read(path)
        return rule.check_theta(theta), {"initial_weights_sha256": metadata["sha256"]}
    except ValueError as error:
        raise ValueError(
            f"`--initial_weights` must be weights of the rule {rule}. "
            f"Received: --initial_weights={name}. {error}"
        ) from error


def _outer_learning_rate():
    """A number, or the Keras schedule of warm-up and decay."""
    rate, warmup = _OUTER_LEARNING_RATE.value, _OUTER_WARMUP_STEPS.value
    decays = _OUTER_LEARNING_RATE_SCHEDULE.value == "cosine"
    if not decays and not warmup:
        return rate
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else rate,
        decay_steps=_NUM_OUTER_STEPS.value - warmup,
        alpha=0.0 if decays else 1.0,
        warmup_target=rate if warmup else None,
        warmup_steps=warmup,
    )


def _curriculum():
    num_steps = _CURRICULUM_STEPS.value
    if num_steps is None and _CURRICULUM.value in ("linear", "exponential"):
        num_steps = _NUM_OUTER_STEPS.value
    try:
        return curriculum.Curriculum(
            _CURRICULUM.value, _horizon(), _SHORTEST_PROBLEM.value, num_steps
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"--curriculum={_CURRICULUM.value}, --shortest_problem={_SHORTEST_PROBLEM.value} and "
            f"--curriculum_steps={_CURRICULUM_STEPS.value} do not fit: {error}"
        ) from error


def _horizon():
    return _HORIZON.value or _UNROLL_LENGTH.value


def _export_dir():
    return _EXPORT_DIR.value or os.path.join(_OUT_DIR.value, "export")


def _check_directories(run):
    """Raises if something cannot be written, or would be replaced that is not this run's."""
    for directory in (_OUT_DIR, _EXPORT_DIR, _DATA_DIR, _COMPILATION_CACHE):
        if directory.value is not None:
            try:
                run_directory.check_writable(directory.value)
            except ValueError as error:
                raise ValueError(f"--{directory.name}: {error}") from error
    run_directory.check(_OUT_DIR.value, run)
    export_dir, out_dir = (os.path.abspath(x) for x in (_export_dir(), _OUT_DIR.value))
    if os.path.commonpath([export_dir, out_dir]) == export_dir:
        raise ValueError(
            f"`--export_dir={_EXPORT_DIR.value}` must not hold --out_dir={_OUT_DIR.value}. "
            "An export is a directory of its own."
        )
    is_empty = os.path.isdir(export_dir) and not os.listdir(export_dir)
    if is_empty or not os.path.lexists(export_dir):
        return
    if not os.path.isfile(os.path.join(export_dir, saved_model.METADATA_FILE)):
        raise ValueError(
            f"The run is to be exported to {export_dir!r}, where there is something that is not an "
            "export. Choose another --export_dir."
        )
    given = _EXPORT_DIR.value is not None
    if given and saved_model.read_metadata(export_dir).get("flags") != run["flags"]:
        raise ValueError(
            f"`--export_dir={_EXPORT_DIR.value}` holds the export of another run. Choose another."
        )


def _deciding_flags():
    """The flags of this file that must be the same when a run is resumed."""
    own = flags.FLAGS.get_flags_for_module(__name__)
    return {flag.name: flag.value for flag in own if flag.name not in _WITHOUT_EFFECT_ON_THETA}


def _compare(task, rule, theta):
    print(f"Comparing with tuned baselines on {_horizon()} steps of {_TASK.value}...")
    curves = comparison.compare(task, rule, theta, _horizon(), _SEED.value)
    picture = os.path.join(_OUT_DIR.value, "learning_curve.png")
    comparison.plot(curves, f"{_TASK.value}, fresh seeds", picture)
    summary = comparison.summarise(curves)
    run_directory.write_json(os.path.join(_OUT_DIR.value, "learning_curve.json"), summary)
    for name, figures in summary.items():
        print(f"{name:>30}: ", end="")
        print(", ".join(f"{k} {v['mean']:.4f} ± {v['std']:.4f}" for k, v in figures.items()))
    print(f"Picture: {picture}")


if __name__ == "__main__":
    command.run(main, flags_parser=_parse_flags)
