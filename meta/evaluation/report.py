"""What a comparison leaves behind: JSON, CSV, pictures, and a page that needs no network."""

import base64
import csv
import html
import math
import os
import pathlib
import re
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lopt_keras.types import Array
from meta import files, provenance
from meta.evaluation import metrics, plots
from meta.evaluation.benchmark import Settings, TaskResult

_TEMPLATE = pathlib.Path(__file__).with_name("report.html")
_SUMMARY = (
    ("train_ratio", "ratio of steps, train loss"),
    ("seconds_ratio", "ratio of seconds, train loss"),
    ("validation_ratio", "ratio of steps, validation loss"),
    ("validation_excess", "excess, final validation loss"),
    ("test_excess", "excess, final test loss"),
    ("end_ratio", "Adam's steps to the final train loss"),
)
_SHARES = (
    ("fraction_train_won", "tasks won by train loss"),
    ("fraction_validation_won", "tasks won by validation loss"),
    ("fraction_fastest", "tasks on which it is the fastest of all"),
    ("fraction_validation_no_worse", "tasks with a validation loss no worse"),
    ("fraction_test_no_worse", "tasks with a test loss no worse"),
)
_TASK_COLUMNS = (
    ("steps_to_train", "steps to Adam's final train loss"),
    ("seconds_to_train", "seconds"),
    ("train_ratio", "ratio at equal train loss"),
    ("validation_ratio", "ratio at equal validation loss"),
    ("mean_train", "mean train loss"),
    ("final_train", "final train loss"),
    ("final_validation", "final validation loss"),
    ("final_test", "final test loss"),
)


def write(
    out_dir: str,
    results: Sequence[TaskResult],
    rivals: Collection[str],
    settings: Settings,
    command: str,
) -> dict[str, Any]:
    """Writes everything.

    Args:
        out_dir: directory, made if there is none.
        results: list of `benchmark.TaskResult`.
        rivals: names of the optimizers that are compared with the baselines.
        settings: `benchmark.Settings`.
        command: that was run, for the page.

    Returns:
        The summary: dict from the name of each optimizer to `metrics.summarise`.
    """
    os.makedirs(os.path.join(out_dir, "curves"), exist_ok=True)
    files = {}
    for result in results:
        name = re.sub(r"\W+", "_", result.entry.name)
        files[result.entry.name] = os.path.join(out_dir, "curves", f"{name}.png")
        plots.plot_task(result, rivals, files[result.entry.name])
    overview = [os.path.join(out_dir, f"{name}.png") for name in ("ratios", "profiles")]
    plots.plot_ratios(results, rivals, overview[0])
    plots.plot_profiles(results, rivals, overview[1])
    summary = summarise(results)
    content = {
        "settings": settings._asdict(),
        "summary": summary,
        "tasks": {result.entry.name: _task_json(result) for result in results},
    }
    provenance.write_results(os.path.join(out_dir, "results.json"), content)
    _write_csv(os.path.join(out_dir, "results.csv"), results)
    page = _page(results, rivals, settings, command, summary, overview, files)
    _replace(os.path.join(out_dir, "report.html"), page)
    return summary


def summarise(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Dict from the name of each optimizer to its figures over all tasks."""
    names = list(results[0].outcomes)
    summary = {}
    for name in names:
        own = [result.outcomes[name].metrics for result in results]
        others = [
            np.array([o.metrics.train_ratio for n, o in r.outcomes.items() if n != name])
            for r in results
        ]
        edges = sum(bool(result.outcomes[name].at_edge) for result in results)
        summary[name] = {**metrics.summarise(own, others), "learning_rates_at_edge": edges}
    return summary


def _task_json(result: TaskResult) -> dict[str, Any]:
    outcomes = {
        name: {
            "learning_rate": outcome.learning_rate,
            "at_edge": bool(outcome.at_edge),
            "seconds_per_step": _finite(outcome.seconds),
            **{key: [_finite(x) for x in v] for key, v in outcome.metrics._asdict().items()},
        }
        for name, outcome in result.outcomes.items()
    }
    return {
        "config": result.entry.config._asdict(),
        "num_parameters": result.num_parameters,
        "start_loss": result.start,
        "optimizers": outcomes,
    }


def _finite(value: Any) -> bool | float | None:
    """For JSON, which has no infinity."""
    return value.item() if isinstance(value, np.bool_) else _number(float(value))


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _write_csv(file: str, results: Sequence[TaskResult]) -> None:
    names = metrics.Metrics._fields
    with files.whole(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["task", "optimizer", "seed", "learning_rate", "seconds_per_step", *names])
        for result in results:
            for optimizer, outcome in result.outcomes.items():
                for seed, row in enumerate(zip(*outcome.metrics, strict=True)):
                    start = [result.entry.name, optimizer, seed, outcome.learning_rate]
                    writer.writerow([*start, _finite(outcome.seconds), *map(_finite, row)])


def _page(
    results: Sequence[TaskResult],
    rivals: Collection[str],
    settings: Settings,
    command: str,
    summary: Mapping[str, Any],
    overview: Sequence[str],
    files: Mapping[str, str],
) -> str:
    told = "hear" if settings.signals_known else "do not hear"
    signals = "the number of steps, and validation losses if they use them"
    substitutions = {
        "command": html.escape(command),
        "tasks": _count(len(results), "task"),
        "seeds": _count(settings.num_seeds, "seed"),
        "steps": _count(settings.num_steps, "step"),
        "rates": _rates(settings.num_rates, settings.rates_from, settings.tune_on),
        "horizon": f"Optimizers {told} {signals}.",
        "augmentation": html.escape(str(settings.augmentation or "none")),
        "summary": _summary_table(summary, rivals),
        "shares": _fractions_table(summary, rivals),
        "overview": "".join(_picture(file) for file in overview),
        "index": _index_table(results, rivals),
        "details": "".join(_task_section(r, rivals, files[r.entry.name]) for r in results),
    }
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(substitutions)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rates(number: int, earlier: str | None, tune_on: str) -> str:
    if number > 1:
        around = ", around that of an earlier comparison" if earlier else ""
        return (
            f"the best of {number} learning rates, half-decades apart{around}: the one of the "
            f"lowest final {tune_on} loss, chosen for each task on seeds of its own"
        )
    if earlier:
        return "the learning rate that an earlier comparison chose"
    return "the middle one of the learning rates"


def _summary_table(summary: Mapping[str, Any], rivals: Collection[str]) -> str:
    # Not every figure is always measured.
    measured = [key for key, _ in _SUMMARY if key in next(iter(summary.values()))["quartiles"]]
    rows = []
    for name, own in summary.items():
        cells = [f"{own['diverged']} of {own['pairs']}"]
        cells.append(_short(own["quartiles"]["train_ratio"][0]))
        for key in measured:
            _, lower, median, upper, _ = map(_short, own["quartiles"][key])
            cells.append(f"<b>{median}</b> <small>({lower} to {upper})</small>")
        rows.append((name, cells))
    heads = [dict(_SUMMARY)[key] for key in measured]
    return _table(["optimizer", "diverged", "lowest ratio, train loss", *heads], rows, rivals)


def _fractions_table(summary: Mapping[str, Any], rivals: Collection[str]) -> str:
    rows = [
        (
            name,
            [f"{100 * own[key]:.0f} %" for key, _ in _SHARES] + [own["learning_rates_at_edge"]],
        )
        for name, own in summary.items()
    ]
    heads = [label for _, label in _SHARES]
    return _table(["optimizer", *heads, "learning rate at the edge"], rows, rivals)


def _index_table(results: Sequence[TaskResult], rivals: Collection[str]) -> str:
    heads = ["task", "parameters"]
    heads += [f"{rival}: {what}" for rival in rivals for what in ("train", "validation", "excess")]
    rows = []
    for result in results:
        cells = [f"{result.num_parameters:,}"]
        for rival in rivals:
            own = result.outcomes[rival].metrics
            cells += [_spread(own.train_ratio), _spread(own.validation_ratio)]
            cells.append(_spread(own.validation_excess))
        rows.append((result.entry.name, cells))
    return _table(heads, rows, ())


def _task_section(result: TaskResult, rivals: Collection[str], file: str) -> str:
    rows = []
    for name, outcome in result.outcomes.items():
        rate = "" if outcome.learning_rate is None else f"{outcome.learning_rate:.3g}"
        cells = [rate + (" (edge)" if outcome.at_edge else "")]
        cells += [_spread(getattr(outcome.metrics, key)) for key, _ in _TASK_COLUMNS]
        cells.append(str(outcome.metrics.diverged.sum()))
        rows.append((name, cells))
    heads = ["optimizer", "learning rate", *(label for _, label in _TASK_COLUMNS), "diverged"]
    title = html.escape(f"{result.entry.name}, {result.num_parameters:,} parameters")
    config = html.escape(f"{result.entry.config.architecture} {result.entry.config.setting}")
    table = _table(heads, rows, rivals)
    return f"<h3>{title}</h3><p class=config>{config}</p>{_picture(file)}{table}"


def _table(
    heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], rivals: Collection[str]
) -> str:
    """HTML, from headings and rows: pairs of a name and the other cells."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = ""
    for name, cells in rows:
        emphasis = " class=rival" if name in rivals else ""
        data = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f"<tr{emphasis}><td>{html.escape(name)}</td>{data}</tr>"
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def _spread(values: Array) -> str:
    """Median over seeds, and lowest and highest."""
    lowest, _, median, _, highest = metrics.quantiles(values)
    return f"{_short(median)} <small>({_short(lowest)} to {_short(highest)})</small>"


def _short(value: float | None) -> str:
    """Three digits, none beyond the fourth decimal."""
    if value is None:
        return "never"
    return f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.4f}".rstrip("0").rstrip(".")


def _picture(file: str) -> str:
    data = base64.b64encode(pathlib.Path(file).read_bytes()).decode()
    name = html.escape(os.path.basename(file))
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _replace(file: str, text: str) -> None:
    with files.whole(file) as temporary:
        pathlib.Path(temporary).write_text(text, encoding="utf-8")
