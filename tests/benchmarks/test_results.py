"""Every committed result says what made it."""

import json
import pathlib
import re

RESULTS = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "results"
OLDER = "older.json"
"""What is known of results that are older than the entry `made_by`."""

CACHES = {"adam.json", "tuning.json"}
"""The trainings by hand-designed optimizers, by name and settings, of more than one run. The
results that use them lie beside them and name their learning rates."""

WEIGHTS = "assets/metadata.json"
"""Of a SavedModel: it has its own provenance."""


def results():
    """Dict from the path of each result below `RESULTS` to what it holds."""
    found = {file.relative_to(RESULTS).as_posix(): file for file in RESULTS.rglob("*.json")}
    return {
        path: json.loads(file.read_text(encoding="utf-8"))
        for path, file in sorted(found.items())
        if file.name not in CACHES and not path.endswith(WEIGHTS) and path != OLDER
    }


def older():
    """Dict from the path of each older result to what is known of it."""
    return json.loads((RESULTS / OLDER).read_text(encoding="utf-8"))["files"]


def tells(content):
    """Whether a result itself says what made it."""
    made_by = content.get("made_by", {}) if isinstance(content, dict) else {}
    return made_by.keys() >= {"command", "commit", "versions"} and all(made_by.values())


def test_every_result_says_what_made_it_or_is_listed_as_older():
    untold = {path for path, content in results().items() if not tells(content)}
    assert untold == set(older())


def test_what_is_listed_as_older_names_commit_date_and_versions_and_why_it_lacks_a_command():
    for path, entry in older().items():
        assert re.fullmatch("[0-9a-f]{40}", entry["committed_in"]), path
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"]), path
        assert set(entry["versions"]) >= {"keras", "numpy", "tensorflow"}, path
        assert entry["command"] or entry["note"], path
        assert not re.search(r"(^|[\s='])/\w", str(entry["command"])), path
