"""Shows what the tasks are, and computes their reference losses.

python -m meta.tasks --list
python -m meta.tasks --sample=5 --seed=0
python -m meta.tasks --references=2000
python -m meta.tasks --references_of='{"families": {"image_mlp": 1}, "num_tasks": 100}'
"""

from typing import Any

import numpy as np
from absl import app, flags

from export import command
from lopt_keras import rules
from meta import random
from meta.inner.training import InnerTraining
from meta.tasks.families import FAMILIES
from meta.tasks.mixture import Mixture
from meta.tasks.sampling import distribution
from meta.tasks.scoring import references

_LIST = flags.DEFINE_bool("list", False, "Shows the families and the ranges of their parameters.")
_SAMPLE = flags.DEFINE_integer(
    "sample",
    None,
    "Draws so many tasks, and shows their sizes and their validation losses before and after 100 "
    "steps of Adam with the best of 3 learning rates.",
    lower_bound=1,
)
_REFERENCES = flags.DEFINE_integer(
    "references",
    None,
    "Completes meta/tasks/scoring/references.json for so many tasks, those of the seeds 0, 1, ...",
    lower_bound=1,
    upper_bound=100_000,
)
_REFERENCES_OF = flags.DEFINE_string(
    "references_of",
    None,
    "The same for all tasks of a mixture, which is written as for `meta.train --tasks`; and "
    "their learning curves, if its score needs them.",
)
_SET = flags.DEFINE_enum("set", "train", distribution.SETS, "Which set of tasks.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the first task that is drawn.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")

_LEARNING_RATES = (0.001, 0.01, 0.1)
_NUM_STEPS = 100


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if not any(flag.value for flag in (_LIST, _SAMPLE, _REFERENCES, _REFERENCES_OF)):
        raise app.UsageError("Give --list, --sample, --references or --references_of.")
    try:
        mixture = _REFERENCES_OF.value and Mixture.parse(_REFERENCES_OF.value)
    except ValueError as error:
        raise app.UsageError(f"`--references_of`: {error}") from error
    if _LIST.value:
        _show_families()
    for seed in range(_SEED.value, _SEED.value + (_SAMPLE.value or 0)):
        _show_task(seed)
    seeds = range(_SEED.value, _SEED.value + (_REFERENCES.value or 0))
    if seeds:
        configs = [distribution.sample_config(seed, _SET.value) for seed in seeds]
        _show_references(references.MEASURED.complete(configs, _DATA_DIR.value, ships=True))
    if mixture:
        _show_references(mixture.complete(_DATA_DIR.value, ships=True))


def _show_families() -> None:
    later = distribution.LATER_FAMILIES if _SET.value == "train" else ()
    for name in distribution.families(_SET.value) + later:
        family = FAMILIES[name]
        architecture = distribution.architecture_ranges(name, _SET.value)
        summary = family.__doc__.strip().splitlines()[0].replace("`", "")
        print(f"{name}: {summary}")
        for kind, ranges in (("architecture", architecture), ("setting", family.setting)):
            for argument, values in ranges.items():
                print(f"  {kind:>12}  {argument}: {values}")
        where = "mixtures only" if name in later else "this set"
        print(f"  {len(distribution.architectures(name, _SET.value))} architectures in {where}\n")


def _show_task(seed: int) -> None:
    config = distribution.sample_config(seed, _SET.value)
    task = config.build(_DATA_DIR.value)
    adams = [rules.Adam(learning_rate=rate) for rate in _LEARNING_RATES]
    training = InnerTraining(task, adams[0], len(adams), 2, _NUM_STEPS, signals_known=True)
    curves = training([adam.init_theta() for adam in adams], random.seed(0))
    losses = np.stack([own.held_out.mean(axis=-1) for own in curves], axis=1)
    best = int(np.nanargmin(losses[-10:].mean(axis=0)))
    sizes = task.parameter_shapes()
    arguments = {**config.architecture, **config.setting}
    print(f"seed {seed}: {config.family}({', '.join(f'{k}={v}' for k, v in arguments.items())})")
    print(f"  {sum(int(np.prod(size)) for size in sizes)} parameters: {sizes}")
    print(
        f"  validation loss {losses[0].mean():.4g} -> {losses[-10:, best].mean():.4g} "
        f"(Adam, learning rate {_LEARNING_RATES[best]:g}, {_NUM_STEPS} steps)\n"
    )


def _show_references(found: Any) -> None:
    untrainable = sum(not reference.is_trainable for reference in found)
    print(f"{len(found)} tasks have references; Adam does not train {untrainable} of them.")


if __name__ == "__main__":
    command.run(main)
