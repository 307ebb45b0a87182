import dataclasses
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
