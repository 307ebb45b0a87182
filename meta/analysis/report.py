"""An analysis as a page that needs no network, and as JSON."""

import base64
import html
import math
import os
import pathlib
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from lopt_keras import rules
from meta import provenance
from meta.analysis import plots
from meta.analysis.sections import SECTIONS, Section, Table
from meta.analysis.study import Study

_TEMPLATE = pathlib.Path(__file__).with_name("report.html")


def write(
    out_dir: str, study: Study, names: Sequence[str], command: str
) -> dict[str, Section | str]:
    """Computes sections and writes `report.html`, `analysis.json` and pictures.

    A section that cannot be computed says why; the others are computed all the same.

    Args:
        out_dir: directory, made if there is none.
        study: `Study`.
        names: of `SECTIONS`.
        command: that was run, for the page.

    Returns:
        Dict from the name to the `Section`, or to the text that says why there is none.
    """
    os.makedirs(out_dir, exist_ok=True)
    found = {}
    with tqdm.tqdm(names, unit="section", leave=False) as bar:
        for name in bar:
            bar.set_description(name)
            found[name] = compute(study, name)
    content = {
        "subject": study.subject.name,
        "rule": rules.serialize(study.subject.rule),
        "task": {"name": study.task.name, "config": _plain(study.task.get_config())},
        "sections": {
            name: {"missing": x} if isinstance(x, str) else _plain(x.data)
            for name, x in found.items()
        },
    }
    provenance.write_results(os.path.join(out_dir, "analysis.json"), content)
    page = _page(out_dir, study, found, command)
    file = os.path.join(out_dir, "report.html")
    with open(f"{file}.tmp", "w", encoding="utf-8") as f:
        f.write(page)
    os.replace(f"{file}.tmp", file)
    return found


def compute(study: Study, name: str) -> Section | str:
    """The `Section` of that name, or a text that says why there is none."""
    try:
        return SECTIONS[name](study)
    except (ArithmeticError, MemoryError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        reason = error
    except tf.errors.OpError as error:
        reason = error.message.partition("\n")[0]
    text = f"The section {name!r} could not be computed: {reason}"
    print(text, file=sys.stderr)
    return text


def _page(out_dir: str, study: Study, found: Mapping[str, Section | str], command: str) -> str:
    subject = study.subject
    try:
        rule: Any = study.adam.rule  # `rules.Adam`.
        adam = f"{rule.learning_rate:.3g}"
    except (TypeError, ValueError) as error:
        adam = f"unknown ({error})"
    links = [f'<li><a href="#{name}">{_title(name, x)}</a></li>' for name, x in found.items()]
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=html.escape(subject.name),
        command=html.escape(command),
        rule=html.escape(str(subject.rule)),
        adam=html.escape(adam),
        task=html.escape(f"{study.task.name} {study.task.get_config()}"),
        steps=study.num_steps,
        contents=f"<ul>{''.join(links)}</ul>",
        sections="".join(_section(out_dir, subject.name, *pair) for pair in found.items()),
    )


def _title(name: str, section: Section | str) -> str:
    return html.escape(section.title if isinstance(section, Section) else name)


def _section(out_dir: str, subject: str, name: str, section: Section | str) -> str:
    head = f'<h2 id="{name}">{_title(name, section)}</h2>'
    if isinstance(section, str):
        return f"{head}<p class=missing>{html.escape(section)}</p>"
    sentences = "".join(f"<li>{html.escape(text)}</li>" for text in section.findings)
    picture = ""
    if section.panels:
        file = os.path.join(out_dir, f"{name}.png")
        plots.draw(file, section.panels)
        data = base64.b64encode(pathlib.Path(file).read_bytes()).decode()
        picture = f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">'
    tables = "<p></p>".join(_table(table, subject) for table in section.tables)
    return f"{head}<ul>{sentences}</ul>{picture}{tables}"


def _table(table: Table, subject: str) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.heads)
    body = ""
    for row in table.rows:
        own = any(isinstance(x, str) and x.partition(",")[0] == subject for x in row)
        cells = "".join(f"<td>{html.escape(_cell(x))}</td>" for x in row)
        body += f"<tr{' class=subject' if own else ''}>{cells}</tr>"
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "never" if math.isinf(value) else ""
    return f"{value:.3g}"


def _plain(value: Any) -> Any:
    """As JSON can hold it: no arrays, no infinities, six digits."""
    if isinstance(value, dict):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(x) for x in value]
    if isinstance(value, complex | np.complexfloating):
        return {"real": _plain(value.real), "imaginary": _plain(value.imag)}
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
