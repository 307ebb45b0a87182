"""All that docs/pretrained.md says of weights on tasks: evaluations, and their rows of the tables.

python benchmarks/default/measure.py --weights=default --out_dir=out/measure

Where Adam is tuned, it is not tuned again: its learning rates are those of the same part of
`--earlier`. With `--earlier=` they are tuned over 9 rates, which takes about nine times as long. In
the choice and the robustness Adam has one rate, 0.01.
"""

import os
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from meta import smoke
from meta.evaluation import (
    benchmark,
    candidates,
    learning_rates,
    metrics,
    processes,
    report,
    suite,
)
from meta.evaluation.store import Store

_EIGHTY = "heldout_easy:60,heldout_families:20"
_TWENTY = "heldout_easy:15,heldout_families:5"


class Part(NamedTuple):
    """One evaluation.

    Attributes:
        tasks, overrides: as for `suite.parse`.
        settings: dict, those of `benchmark.Settings` that are not the usual ones.
    """

    tasks: str
    settings: dict[str, Any]
    overrides: dict[str, Any] = {}


_BOTH = {
    "evaluation": Part(_EIGHTY, {}),
    "long": Part(_EIGHTY, {"num_steps": 2000}),
    "twenty": Part(_TWENTY, {"longer": 10}),
    "train_tuned": Part(_TWENTY, {"tune_on": "train"}),
    "scale": Part("heldout_scale:5", {}),
    "scale_long": Part("heldout_scale:5", {"num_steps": 2000}),
    "choice": Part("train:30", {"num_rates": 1, "num_seeds": 2}),
}
_ROBUSTNESS = {
    "scaled": Part(_TWENTY, {"num_seeds": 32, "augmentation": {"loss_scale": [0.001, 1000]}}),
    "batch_of_1": Part("heldout_easy:10,heldout_families:5", {"num_seeds": 20}, {"batch_size": 1}),
    "long": Part(
        "logistic_regression:2,image_mlp:2,table_mlp:1", {"num_seeds": 10, "num_steps": 10_000}
    ),
    "large": Part("heldout_scale:5", {"num_seeds": 6, "num_steps": 50}),
}
PARTS = {
    **{
        f"{name}_{told}": part._replace(settings={**part.settings, "signals_known": told == "told"})
        for name, part in _BOTH.items()
        for told in ("told", "untold")
    },
    **{
        f"robustness_{name}": part._replace(settings={"num_rates": 1, **part.settings})
        for name, part in _ROBUSTNESS.items()
    },
}
"""By name. "told" parts have signals."""

_WEIGHTS = flags.DEFINE_list(
    "weights", "default", "Shipped weights or SavedModels, each also as label=weights."
)
_PARTS = flags.DEFINE_list("parts", list(PARTS), "Which parts.")
_EARLIER = flags.DEFINE_string(
    "earlier",
    "benchmarks/results/default/wide",
    "Where the parts of an earlier measurement are, whose learning rates are used; or empty.",
)
_TASKS = flags.DEFINE_string("tasks", None, "Other tasks in place of those of each part.")
_STEPS = flags.DEFINE_integer(
    "steps", None, "Other steps in place of those of each part.", lower_bound=2
)
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Where results go.", required=True)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Where runs are kept. Default: OUT_DIR/cache.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(
    parts=["evaluation_untold", "robustness_large"],
    tasks='{"family": "quadratic", "dimension": 2}',
    steps=20,
    earlier="",
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if unknown := set(_PARTS.value) - set(PARTS):
        raise app.UsageError(f"--parts must be some of {list(PARTS)}. Received: {unknown}")
    try:
        rivals = [candidates.learned(text) for text in _WEIGHTS.value]
        planned = {name: plan(name) for name in _PARTS.value}
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    names = [candidates.ADAM, *(rival.name for rival in rivals)]
    if len(set(names)) < len(names):
        raise app.UsageError(f"--weights need different names. Received, with Adam: {names}")
    for name, (entries, settings) in planned.items():
        summary, tasks = measure(name, rivals, entries, settings)
        print(f"\n{name}: ratio of steps, geometric mean, below 0.8, at equal validation loss,")
        print("validation no worse, lowest, diverged, Adam's steps to its end")
        for rival in rivals:
            print(row(rival.name, summary[rival.name], tasks))


def plan(name):
    """The tasks and the settings of a part, whose learning rates are there."""
    part = PARTS[name]
    entries = suite.parse(_TASKS.value or part.tasks, part.overrides)
    settings = benchmark.Settings(wall_clock=False, **part.settings)
    if _STEPS.value:
        settings = settings._replace(num_steps=_STEPS.value)
    if _EARLIER.value and settings.num_rates > 1:
        file = os.path.join(_EARLIER.value, name, "results.json")
        learning_rates.check(file, entries, [candidates.ADAM])
        settings = settings._replace(num_rates=1, rates_from=file)
    return entries, settings


def measure(name, rivals, entries, settings):
    """Runs a part and writes its results: the summary, and the list of `TaskResult`."""
    out_dir = os.path.join(_OUT_DIR.value, name)
    cache_dir = _CACHE_DIR.value or os.path.join(_OUT_DIR.value, "cache")
    common = entries, [*rivals, candidates.BASELINES[candidates.ADAM]], settings
    if processes.are_too_many(entries):
        processes.fill(*common, cache_dir, _DATA_DIR.value, num_workers=1)
    results = benchmark.run(*common, Store(cache_dir), _DATA_DIR.value)
    names = [rival.name for rival in rivals]
    command = f"part {name} of benchmarks/default/measure.py"
    return report.write(out_dir, results, names, settings, command), results


def row(name, summary, results):
    """A row of a table of docs/pretrained.md."""
    quartiles = summary["quartiles"]
    ratios = [metrics.median(result.outcomes[name].metrics.train_ratio) for result in results]
    ratios = np.maximum(ratios, 1e-3)  # 0 if Adam's loss is never reached.
    cells = [
        name,
        spread(quartiles["train_ratio"], 2),
        f"{np.exp(np.mean(np.log(ratios))):.2f}",
        f"{100 * np.mean(ratios < 0.8):.0f} %",
        number(quartiles["validation_ratio"][2], 2),
        f"{100 * summary['fraction_validation_no_worse']:.0f} %",
        number(quartiles["train_ratio"][0], 2),
        f"{summary['diverged']} of {summary['pairs']}",
    ]
    if "end_ratio" in quartiles:
        cells.append(spread(quartiles["end_ratio"], 1))
    return f"| {' | '.join(cells)} |"


def spread(quartiles, digits):
    """Median and quartiles."""
    _, low, median, high, _ = (number(x, digits) for x in quartiles)
    return f"{median} ({low} to {high})"


def number(value, digits):
    """As text; None is what never happened."""
    return "never" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    app.run(main)
