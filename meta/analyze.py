"""Takes an optimizer apart: what has it learned?

python -m meta.analyze --weights=default --out_dir=out/analysis
python -m meta.analyze --rule=adam --rule_config='{"learning_rate": 0.01}' --out_dir=out/adam

Writes report.html, which needs no network, analysis.json and pictures. Beside the optimizer stands
Adam with a tuned learning rate. A section that cannot be computed says why.
"""

import contextlib
import os
import shlex
import sys

from absl import app, flags

from export import command
from lopt_keras import rules
from meta import json_flag, memory, tasks
from meta.analysis import report
from meta.analysis.sections import SECTIONS
from meta.analysis.study import Study
from meta.analysis.subject import Subject
from meta.evaluation import candidates
from meta.training import run_directory

_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Shipped weights or a SavedModel, also as label=weights."
)
_RULE = flags.DEFINE_string(
    "rule", None, f"Instead: an update rule as it starts, one of {rules.NAMES}."
)
_RULE_CONFIG = flags.DEFINE_string("rule_config", "{}", "The rule's arguments, as JSON.")
_TASK = flags.DEFINE_enum("task", "image_mlp", tasks.NAMES, "What it trains.")
_TASK_CONFIG = flags.DEFINE_string("task_config", "{}", "The task's arguments, as JSON.")
_STEPS = flags.DEFINE_integer(
    "steps", 200, "Steps of each training.", lower_bound=20, upper_bound=10**5
)
_PROBLEMS = flags.DEFINE_integer(
    "problems", 2, "Problems of the task, side by side.", lower_bound=1, upper_bound=1000
)
_ADAM_RATE = flags.DEFINE_float(
    "adam_learning_rate", None, "Of the Adam beside it. Default: the best of 9 on the task."
)
_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "Which sections to compute.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of everything random.", lower_bound=0, upper_bound=2**31 - 1
)
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Where the report goes.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

flags.register_validator(
    "adam_learning_rate", lambda x: x is None or 0 < x < float("inf"), "must be positive."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        study, names = _study(), _names()
        run_directory.check_writable(_OUT_DIR.value)
    except (TypeError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run_directory.lock(_OUT_DIR.value))
        except ValueError as error:
            raise app.UsageError(f"--out_dir: {error}") from error
        given = shlex.join(["python", "-m", "meta.analyze", *sys.argv[1:]])
        found = report.write(_OUT_DIR.value, study, names, given)
    for section in found.values():
        if not isinstance(section, str):
            print(f"{section.title}")
            for sentence in section.findings:
                print(f"  {sentence}")
    print(f"Report: {os.path.join(_OUT_DIR.value, 'report.html')}")


def _study() -> Study:
    subject = _subject()
    config = json_flag.parse("task_config", _TASK_CONFIG.value)
    try:
        task = tasks.get(_TASK.value, **config)
    except (MemoryError, OverflowError, TypeError) as error:
        raise ValueError(
            f"`--task_config={_TASK_CONFIG.value}` does not fit the task {_TASK.value}: {error!r}"
        ) from error
    memory.check(task, 2 * _PROBLEMS.value)
    return Study(subject, task, _STEPS.value, _PROBLEMS.value, _SEED.value, _ADAM_RATE.value)


def _subject() -> Subject:
    if (_WEIGHTS.value is None) == (_RULE.value is None):
        raise ValueError("Give one of --weights and --rule.")
    if _WEIGHTS.value is not None:
        learned = candidates.learned(_WEIGHTS.value)
        return Subject(learned.name, learned.rule, learned.theta)
    rule = rules.get(_RULE.value, **json_flag.parse("rule_config", _RULE_CONFIG.value))
    return Subject.hand_designed(f"{type(rule).__name__} as given", rule)


def _names() -> list[str]:
    if not _SECTIONS.value or not set(_SECTIONS.value) <= set(SECTIONS):
        raise ValueError(
            f"`--sections` must be some of {list(SECTIONS)}. Received: {_SECTIONS.value}"
        )
    return _SECTIONS.value


if __name__ == "__main__":
    command.run(main)
