import json
import re
import types

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from lopt_keras import rules
from meta import analyze, tasks
from meta.analysis import report, scaling, sections, study
from meta.analysis.subject import Subject

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("analyze")

ADAM = ["--rule=adam", '--rule_config={"learning_rate": 0.05}', "--adam_learning_rate=0.02"]
TASK = ["--task=two_moons", '--task_config={"hidden_units": [4], "batch_size": 8}']


def run(*arguments):
    flags.FLAGS.unparse_flags()
    with flagsaver.flagsaver():
        flags.FLAGS(["analyze", *arguments])
        analyze.main(["analyze"])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    sections = "--sections=training,momentum,clipping,adaptation,regularisation"
    run(*ADAM, *TASK, "--steps=20", "--problems=1", sections, f"--out_dir={folder}")
    return folder


def test_the_report_finds_what_adam_is(out):
    content = json.loads((out / "analysis.json").read_text())
    assert set(content) == {"made_by", "rule", "sections", "subject", "task"}
    found = content["sections"]
    assert list(found) == ["training", "momentum", "clipping", "adaptation", "regularisation"]
    own = found["momentum"]["Adam as given, parameter"]
    np.testing.assert_allclose(own["momenta"][0], 0.9, rtol=1e-3)
    # The rate over the noise's size is the learning rate over the bias of ten steps of m.
    assert abs(found["adaptation"]["Adam as given, parameter"]["exponent"]) < 0.01
    assert abs(found["regularisation"]["Adam as given"]["share"]) < 1e-4


def test_the_page_holds_all_that_it_shows(out):
    page = (out / "report.html").read_text()
    assert "What has Adam as given learned?" in page
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv)', page)
    assert "class=missing" not in page


def test_a_section_that_cannot_be_computed_says_why_and_the_others_are_there(tmp_path):
    diverging = Subject.hand_designed("wild", rules.SGD(1e6))
    task = tasks.get("quadratic", dimension=2)
    wild = study.Study(diverging, task, 20, 1, adam_rate=0.1)
    found = report.write(tmp_path, wild, ["training", "clipping"], "a command")
    assert "wild diverges on the task 'quadratic'" in found["training"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("class=missing") == 2
    content = json.loads((tmp_path / "analysis.json").read_text())
    assert "diverges" in content["sections"]["clipping"]["missing"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Give one of --weights and --rule"),
        (["--weights=default", "--rule=adam"], "Give one of --weights and --rule"),
        (["--weights=/nowhere"], "There is none at"),
        (["--rule=adam", "--sections=nothing"], "`--sections` must be some of"),
        (["--rule=adam", '--task_config={"nope": 1}'], "nope"),
    ],
)
def test_wrong_flags_are_named_before_any_work(arguments, text, tmp_path):
    with pytest.raises(Exception, match=re.escape(text)):
        run(*arguments, f"--out_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_rule_without_theta_is_refused():
    class Empty(rules.SGD):
        def theta_shapes(self):
            return {}

    with pytest.raises(ValueError, match="must have meta-parameters"):
        Subject("empty", Empty(), {})


def test_a_learning_rate_that_diverges_is_not_the_best(monkeypatch):
    losses = [np.nan, 3.0, 2.0, 1.0, 0.5, np.inf, np.nan, np.nan, np.nan]

    def best():
        curves = [types.SimpleNamespace(held_out=np.full((20, 1), loss)) for loss in losses]
        monkeypatch.setattr(study, "InnerTraining", lambda *_: lambda *_: curves)
        return study.Study(None, tasks.get("quadratic"), 20).adam.rule.learning_rate

    np.testing.assert_allclose(best(), 0.01)
    losses = [np.nan] * 9
    with pytest.raises(ValueError, match="No learning rate of 0.0001 to 1 lets Adam train"):
        best()


def test_a_variant_that_cannot_be_measured_does_not_hide_the_others(monkeypatch):
    small = {"hidden_units": (4,), "batch_size": 8}
    variants = {
        "dimension": ((4,), lambda value: tasks.get("quadratic", dimension=value)),
        "batch size": (
            (4, 8),
            lambda value: tasks.get("two_moons", **small | {"batch_size": value}),
        ),
    }
    monkeypatch.setattr(scaling, "VARIANTS", variants)
    monkeypatch.setattr(sections, "_SWEEP_STEPS", 4)
    subject = Subject.hand_designed("own", rules.SGD(0.1))
    found = sections.scale(study.Study(subject, tasks.get("quadratic"), 20, 1, adam_rate=0.1))
    assert found.findings[0].startswith("own, dimension: not measured. The task at the value 4")
    assert [row[:2] for row in found.tables[0].rows] == [
        ["batch size", "own"],
        ["batch size", "Adam"],
    ]
