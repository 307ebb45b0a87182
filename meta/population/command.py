"""Has a population of learned optimizers train itself, from a random start, and exports the best.

python -m meta.population --task=digits_mlp --rule=mlp --out_dir=out/population

Run again with the same flags, it resumes.
"""

import contextlib
import os
import shlex
import sys
from typing import Any, NamedTuple

from absl import app, flags

from export import saved_model
from lopt_keras import rules
from lopt_keras.saved_model import check_rule_size
from meta import estimators, json_flag, memory, provenance, tasks
from meta.population import plots
from meta.population.evolution import SELECTIONS, Evolution
from meta.population.population import Population
from meta.population.training import Training
from meta.tasks.base import Task
from meta.tasks.scoring.normalized import RelativeToStart
from meta.training import run_directory

_LARGEST = 2**31 - 1  # Counters and seeds are int32.
TRAINERS = ("members", "start")

_TASK = flags.DEFINE_enum("task", "digits_mlp", tasks.NAMES, "Inner problem.")
_TASK_CONFIG = flags.DEFINE_string(
    "task_config",
    "{}",
    "The task's arguments, as JSON. A list of numbers for a setting makes variants of the task.",
)
_RULE = flags.DEFINE_string("rule", "mlp", "Update rule of the members, a network.")
_RULE_CONFIG = flags.DEFINE_string("rule_config", "{}", "The rule's arguments, as JSON.")
_ESTIMATOR = flags.DEFINE_enum("estimator", "es", estimators.NAMES, "Of the meta-gradient.")
_NUM_PARTICLES = flags.DEFINE_integer(
    "num_particles", 8, "Perturbed copies of each member's theta; half as many pairs.", 2
)
_UNROLL_LENGTH = flags.DEFINE_integer("unroll_length", 40, "Inner steps for each outer step.", 1)
_HORIZON = flags.DEFINE_integer(
    "horizon", None, "Inner steps of a whole problem. Default: unroll_length.", 1
)
_OUTER_OBJECTIVE = flags.DEFINE_enum(
    "outer_objective", "train", estimators.OUTER_SPLITS, "Split of the outer loss."
)
_NUM_MEMBERS = flags.DEFINE_integer("num_members", 10, "Learned optimizers in the population.")
_NUM_GENERATIONS = flags.DEFINE_integer("num_generations", 100, "How often they are scored.", 1)
_STEPS_PER_GENERATION = flags.DEFINE_integer(
    "steps_per_generation", 20, "Outer steps from one score to the next.", 1
)
_OUTER_HORIZON = flags.DEFINE_integer(
    "outer_horizon",
    None,
    "Outer steps after which a trainer begins with a fresh state, at step 0. "
    "Default: steps_per_generation.",
    1,
)
_NUM_PROBLEMS = flags.DEFINE_integer(
    "num_problems", 64, "Fresh problems, the same for all, by which members are scored.", 1
)
_TRAINERS = flags.DEFINE_enum(
    "trainers",
    "members",
    TRAINERS,
    "Who trains: the members as they are, or (to compare) as they were at the start.",
)
_TAKES_BACK = flags.DEFINE_bool(
    "takes_back", True, "Whether a member that a generation made worse is what it was before it."
)
_PROGRESS_WEIGHT = flags.DEFINE_float(
    "progress_weight", 0.0, "How much of a member's fitness is the progress of those it trains."
)
_SELECTION = flags.DEFINE_enum("selection", "truncation", SELECTIONS, "Who is copied over whom.")
_NUM_COPIED = flags.DEFINE_integer("num_copied", 2, "Members that are replaced in a generation.")
_TOURNAMENT_SIZE = flags.DEFINE_integer("tournament_size", 3, "Members in a tournament.")
_MULTIPLIER = flags.DEFINE_list(
    "multiplier", ["0.01", "10"], "LOW,HIGH of the multiplier of outer steps."
)
_STDDEV = flags.DEFINE_list(
    "stddev", ["0.03", "0.3"], "LOW,HIGH of the standard deviation of the perturbations."
)
_LENGTH = flags.DEFINE_list(
    "length", ["1", "1"], "LOW,HIGH of the length of problems, as a fraction of the horizon."
)
_RESAMPLED = flags.DEFINE_float(
    "resampled", 0.1, "Probability that a copy's hyperparameter is drawn anew."
)
_NEW_TRAINER = flags.DEFINE_float(
    "new_trainer", 0.2, "Probability that a copy's trainer is drawn anew."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.", 0, _LARGEST)
_CHECKPOINT_EVERY = flags.DEFINE_integer("checkpoint_every", 10, "Generations between them.", 1)
_OUT_DIR = flags.DEFINE_string(
    "out_dir",
    None,
    "Directory of the run: checkpoints, summaries, genealogy.json and its picture, and the best "
    "member as a SavedModel in `export`.",
    required=True,
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_WITHOUT_EFFECT = ("out_dir", "data_dir", "checkpoint_every", "num_generations")


class _Plan(NamedTuple):
    """What the flags ask for, checked, before anything is written or takes long.

    Attributes:
        training, evolution: `Training`, `Evolution`.
        run: what `run.json` is to hold.
    """

    training: Training
    evolution: Evolution
    run: dict[str, Any]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    with contextlib.ExitStack() as stack:
        try:
            plan = _plan()
            stack.enter_context(run_directory.lock(_OUT_DIR.value))
            population = _population(plan)
            claimed = run_directory.claim(_OUT_DIR.value, plan.run)
            generation = population.restore()
        except (TypeError, ValueError) as error:
            raise app.UsageError(str(error)) from error
        if generation:
            print(f"Resuming at generation {generation}.")
        population.run(_NUM_GENERATIONS.value)
        _finish(population, plan, claimed["commits"])


def _plan() -> _Plan:
    rule = rules.get(_RULE.value, **json_flag.parse("rule_config", _RULE_CONFIG.value))
    check_rule_size(rule)
    task = _task()
    # Each member's perturbed copies in turn; all members, before and after, to be scored.
    scored = 2 * _NUM_MEMBERS.value * _NUM_PROBLEMS.value
    memory.check(task, max(_NUM_PARTICLES.value, scored))
    estimator = estimators.get(
        _ESTIMATOR.value,
        rule,
        RelativeToStart(task),
        horizon=_HORIZON.value or _UNROLL_LENGTH.value,
        num_particles=_NUM_PARTICLES.value,
        unroll_length=_UNROLL_LENGTH.value,
        outer_split=_OUTER_OBJECTIVE.value,
    )
    outer_horizon = _OUTER_HORIZON.value
    if outer_horizon is None:
        outer_horizon = _STEPS_PER_GENERATION.value
    training = Training(estimator, outer_horizon)
    evolution = Evolution(
        _SELECTION.value,
        _NUM_COPIED.value,
        _TOURNAMENT_SIZE.value,
        _range(_MULTIPLIER),
        _range(_STDDEV),
        _range(_LENGTH),
        _RESAMPLED.value,
        _NEW_TRAINER.value,
    )
    evolution.check_size(_NUM_MEMBERS.value)
    run = {
        "command": shlex.join(["python", "-m", "meta.population", *sys.argv[1:]]),
        "flags": _deciding_flags(),
        "rule": rules.serialize(rule),
        "seed": _SEED.value,
        "task": {"name": _TASK.value, "config": task.get_config()},
    }
    run_directory.check_writable(_OUT_DIR.value)
    run_directory.check(_OUT_DIR.value, run)
    return _Plan(training, evolution, run)


def _task() -> Task:
    config = json_flag.parse("task_config", _TASK_CONFIG.value)
    try:
        return tasks.get(_TASK.value, data_dir=_DATA_DIR.value, **config)
    except (MemoryError, OverflowError, TypeError) as error:
        raise ValueError(
            f"`--task_config={_TASK_CONFIG.value}` does not fit the task {_TASK.value}: {error!r}"
        ) from error


def _population(plan: _Plan) -> Population:
    return Population(
        plan.training,
        plan.evolution,
        _NUM_MEMBERS.value,
        _STEPS_PER_GENERATION.value,
        _SEED.value,
        _OUT_DIR.value,
        _NUM_PROBLEMS.value,
        pool="start" if _TRAINERS.value == "start" else None,
        takes_back=_TAKES_BACK.value,
        progress_weight=_PROGRESS_WEIGHT.value,
        checkpoint_every=_CHECKPOINT_EVERY.value,
    )


def _finish(population: Population, plan: _Plan, commits: list[str]) -> None:
    """Writes genealogy and picture, and exports the best member."""
    genealogy, best = population.genealogy, population.best
    file = os.path.join(_OUT_DIR.value, "genealogy.json")
    provenance.write_results(file, genealogy.to_dict())
    picture = os.path.join(_OUT_DIR.value, "genealogy.png")
    plots.plot(genealogy, best, picture)
    score = genealogy.generations[-1]["scores"][best]
    metadata = {name: value for name, value in plan.run.items() if name != "rule"}
    metadata |= {
        "commits": commits,
        "outer_steps": genealogy.generations[-1]["step"],
        "member": best,
        "score": score,
        "ancestry": genealogy.ancestry(best),
    }
    path = os.path.join(_OUT_DIR.value, "export")
    theta = {name: x[best] for name, x in population.theta.items()}
    rule = rules.get(plan.run["rule"])
    saved_model.save(path, rule, theta, metadata, overwrite=True)
    print(f"Best member: {best}, score {score:.4f}. SavedModel: {path}. Picture: {picture}")


def _range(flag: flags.FlagHolder) -> tuple[float, float]:
    try:
        low, high = map(float, flag.value)
    except ValueError as error:
        raise ValueError(
            f"`--{flag.name}` must be LOW,HIGH. Received: --{flag.name}={','.join(flag.value)}"
        ) from error
    return low, high


def _deciding_flags() -> dict[str, Any]:
    """The flags of this file that must be the same when a run is resumed."""
    own = flags.FLAGS.get_flags_for_module(__name__)
    return {flag.name: flag.value for flag in own if flag.name not in _WITHOUT_EFFECT}
