import dataclasses
import json
import pathlib
import re

import keras
import tensorflow as tf

from lopt_keras import LearnedOptimizer, rules

ROOT = pathlib.Path(__file__).parent.parent
RULES_PAGE = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")


def test_the_rule_that_the_page_writes_works():
    (code,) = re.findall(r"```python\n(import dataclasses.*?)```", RULES_PAGE, re.DOTALL)
    names = {}
    exec(code, names)
    rule = names["SignMomentum"](step_mult=0.5)
    assert dataclasses.is_dataclass(rule)
    variable = keras.Variable([1.0, -1.0])
    LearnedOptimizer(None, rule).apply([tf.constant([3.0, -2.0])], [variable])
    assert variable.numpy().tolist() == [0.5, -0.5]


def test_the_table_has_every_rule():
    for name in rules.NAMES:
        assert re.search(rf"^\|.*`{name}[`(]", RULES_PAGE, re.MULTILINE), name


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def run_notebook(name, monkeypatch):
    """In this process: as plain Python, without a kernel, which would start TensorFlow anew."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    return names


def test_the_analysis_finds_what_is_known_of_adam(monkeypatch):
    names = run_notebook("analysis.ipynb", monkeypatch)
    assert abs(names["modes"]["Adam"].momentum - 0.9) < 1e-3
    assert 0.7 < names["modes"]["default"].momentum < 0.95
    assert abs(names["powers"]["Adam"]) < 0.05
    assert names["points"].states.round(3).tolist() == [[0.5, 0.25]]


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    names = run_notebook("quickstart.ipynb", monkeypatch)
    assert len(names["learned"]["val_loss"]) == 15
    assert names["learned"]["val_loss"][-1] < 0.5 * names["learned"]["val_loss"][0]
    assert int(names["restored"].optimizer.iterations) == 16 * 19
    assert float(names["value"]) < 1.0
    assert names["optimizer"].skipped_steps == 0


def test_pages_name_flags_and_modules_that_exist():
    binaries = (
        "benchmarks/continuation.py",
        "benchmarks/population.py",
        "meta/analyze.py",
        "meta/continuation/command.py",
        "meta/evaluate.py",
        "meta/population/command.py",
        "meta/train.py",
        "benchmarks/own_model.py",
    )
    sources = "".join((ROOT / file).read_text(encoding="utf-8") for file in binaries)
    pages = ("analysis", "continuation", "meta_training", "population", "quickstart")
    for page in (f"{name}.md" for name in pages):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for flag in re.findall(r"--([a-z_]+)", text):
            if flag == "flagfile":  # absl's own.
                continue
            names = {flag, flag.removeprefix("no")}
            assert any(f'"{name}"' in sources for name in names), f"{page}: {flag}"
