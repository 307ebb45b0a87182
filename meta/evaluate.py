"""Compares optimizers with tuned hand-designed ones, on many tasks.

python -m meta.evaluate --weights=default --tasks=heldout_easy:20 --out_dir=out/evaluation
python -m meta.evaluate --optimizer=keras.optimizers:Adamax --tasks=image_mlp:3 --out_dir=out/mine

Writes results.json, results.csv, plots and report.html. Runs are kept in OUT_DIR/cache. So
the command continues if it is killed and run again, and another optimizer costs only its own
runs. With --num_workers, several processes compute the tasks.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from export import command
from meta import json_flag, memory
from meta.evaluation import benchmark, candidates, learning_rates, processes, report, suite
from meta.evaluation.store import Store
from meta.tasks.sampling import distribution
from meta.tasks.sampling.augmentation import Augmented
from meta.training import run_directory

_WEIGHTS = flags.DEFINE_list(
    "weights", "", "Shipped weights or SavedModels, each also as label=weights."
)
_OPTIMIZER = flags.DEFINE_multi_string(
    "optimizer",
    [],
    "A Keras optimizer, MODULE:CLASS, or JSON: 'optimizer' (that), and any of 'config' (object), "
    "'tuned' (whether to tune the learning rate, around that of the config) and 'name'. Repeat "
    "the flag for more.",
)
_TASKS = flags.DEFINE_string(
    "tasks",
    "heldout_easy:20",
    "Comma-separated sets or families, each also as NAME:COUNT or NAME:COUNT:FIRST; or JSON: an "
    "object with 'family' and its arguments, or a list of such.",
)
_TASK_OVERRIDES = flags.DEFINE_string(
    "task_overrides",
    "{}",
    'JSON: arguments that replace those of the tasks, such as {"batch_size": 1}. Tasks without '
    "them are left out.",
)
_AUGMENTATION = flags.DEFINE_string(
    "augmentation", "{}", "How problems are disguised, as JSON; as for meta.train."
)
_BASELINES = flags.DEFINE_list(
    "baselines", [], "Hand-designed optimizers besides Adam, by name; by default all."
)
_STEPS = flags.DEFINE_integer(
    "steps", 500, "Steps of each training.", lower_bound=2, upper_bound=10**7
)
_SEEDS = flags.DEFINE_integer(
    "seeds",
    3,
    "Problems of each task; as many others serve to tune.",
    lower_bound=1,
    upper_bound=10_000,
)
_RATES = flags.DEFINE_integer(
    "rates", 9, "Learning rates, half-decades apart.", lower_bound=1, upper_bound=41
)
_RATES_FROM = flags.DEFINE_string(
    "rates_from",
    None,
    "results.json of an earlier comparison, with all tasks and all optimizers that are tuned: the "
    "learning rates to try on a task are around those that it chose there. With --rates=1, just "
    "those, so that other weights are compared in a small part of the time.",
)
_TUNE_ON = flags.DEFINE_enum(
    "tune_on", "validation", ("validation", "train"), "The final loss that learning rates minimise."
)
_SIGNALS_KNOWN = flags.DEFINE_bool(
    "signals_known",
    True,
    "Whether optimizers know the number of steps and validation losses, as callbacks tell them.",
)
flags.DEFINE_alias("told", "signals_known")  # Its name before 0.1.0.
_WALL_CLOCK = flags.DEFINE_bool("wall_clock", True, "Whether steps are timed.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all problems.", lower_bound=0, upper_bound=2**31 - 1)
_LONGER = flags.DEFINE_integer(
    "longer",
    1,
    "How many times as many steps Adam is trained besides, to see when it reaches the final train "
    "losses of others; 1 for not at all.",
    lower_bound=1,
    upper_bound=1000,
)
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Where results go.", required=True)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Where runs are kept, for several --out_dir. Default: OUT_DIR/cache."
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    0,
    "Processes that compute tasks side by side; each needs the memory of its task. 0 for this one, "
    "or, if the tasks have too many architectures for it, others one at a time.",
    lower_bound=0,
    upper_bound=1024,
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        rivals, baselines = _rivals(), _baselines()
        entries = suite.parse(
            _TASKS.value, json_flag.parse("task_overrides", _TASK_OVERRIDES.value)
        )
        _check_tasks(entries)
        settings = _settings(entries)
        contenders = [*rivals, *baselines]
        _check_rates(entries, contenders)
        for directory in (_OUT_DIR, _CACHE_DIR, _DATA_DIR):
            if directory.value is not None:
                run_directory.check_writable(directory.value, directory.name)
    except (TypeError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run_directory.lock(_OUT_DIR.value))
        except ValueError as error:
            raise app.UsageError(f"--out_dir: {error}") from error
        cache_dir = _CACHE_DIR.value or os.path.join(_OUT_DIR.value, "cache")
        store, common = Store(cache_dir), (entries, contenders, settings)
        if num_workers := _NUM_WORKERS.value or int(processes.are_too_many(entries)):
            try:
                processes.fill(*common, cache_dir, _DATA_DIR.value, num_workers)
            except processes.ProcessLost as error:
                sys.exit(f"Error: {error}")
        results = benchmark.run(*common, store, _DATA_DIR.value)
        given = shlex.join(["python", "-m", "meta.evaluate", *sys.argv[1:]])
        names = [rival.name for rival in rivals]
        _show(report.write(_OUT_DIR.value, results, names, settings, given))


def _rivals() -> list[candidates.Candidate]:
    """The optimizers to compare with the baselines: list."""
    found: list[candidates.Candidate] = [candidates.learned(text) for text in _WEIGHTS.value]
    found += [candidates.from_import_path(text) for text in _OPTIMIZER.value]
    names = [*candidates.BASELINES, *(rival.name for rival in found)]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"`--weights` and `--optimizer` need different names. Received twice: {repeated}. "
            "Give labels: label=weights, or 'name' in JSON."
        )
    return found


def _baselines() -> list[candidates.HandDesigned]:
    known = candidates.BASELINES
    if unknown := set(_BASELINES.value) - set(known):
        raise ValueError(f"`--baselines` must be some of {list(known)}. Received: {unknown}")
    chosen = {*(_BASELINES.value or known), candidates.ADAM}
    return [baseline for name, baseline in known.items() if name in chosen]


def _check_tasks(entries: Sequence[suite.Entry]) -> None:
    """Raises if a task cannot be built, or is too large for the machine.

    Those of the sets are known to be sound; only arguments that were written out are looked at.
    """
    if _TASKS.value.lstrip()[:1] not in ("{", "[") and _TASK_OVERRIDES.value == "{}":
        return
    for configs in distribution.by_program([entry.config for entry in entries]).values():
        memory.check(distribution.build(configs, _DATA_DIR.value), 2 * _SEEDS.value)


def _check_rates(
    entries: Sequence[suite.Entry], contenders: Sequence[candidates.Candidate]
) -> None:
    if _RATES_FROM.value is not None:
        names = [c.name for c in contenders if c.is_tuned]
        learning_rates.check(_RATES_FROM.value, entries, names)


def _settings(entries: Sequence[suite.Entry]) -> benchmark.Settings:
    augmentation = json_flag.parse("augmentation", _AUGMENTATION.value)
    if augmentation:
        try:
            Augmented(entries[0].config.build(_DATA_DIR.value), **augmentation)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`--augmentation={_AUGMENTATION.value}` does not fit: {error}"
            ) from error
    return benchmark.Settings(
        _STEPS.value,
        _SEEDS.value,
        _RATES.value,
        _TUNE_ON.value,
        _SIGNALS_KNOWN.value,
        _WALL_CLOCK.value,
        augmentation,
        _SEED.value,
        _LONGER.value,
        _RATES_FROM.value,
    )


def _show(summary: Mapping[str, Any]) -> None:
    for name, own in summary.items():
        quartiles = own["quartiles"]["train_ratio"]
        print(
            f"{name:>26}: {quartiles[2]:.2f} times fewer steps than Adam in the median, "
            f"{quartiles[0]:.2f} at worst; validation loss no worse on "
            f"{100 * own['fraction_validation_no_worse']:.0f} % of tasks; "
            f"diverged {own['diverged']} of {own['pairs']}"
        )
    print(f"Report: {os.path.join(_OUT_DIR.value, 'report.html')}")


if __name__ == "__main__":
    command.run(main)
