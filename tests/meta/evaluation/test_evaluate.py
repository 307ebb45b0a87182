import concurrent.futures
import csv
import json
import multiprocessing
import os
import re
import signal
from typing import ClassVar

import numpy as np
import pytest
from absl import app, flags

from lopt_keras import rules
from meta import evaluate as binary
from meta.evaluation import benchmark, candidates, learning_rates, metrics, processes, report, suite
from meta.evaluation.store import Store

TASKS = (
    '[{"family": "quadratic", "dimension": 2, "condition": 3.0, "noise": 0.01},'
    ' {"family": "quadratic", "dimension": 2, "condition": 30.0, "noise": 0.01}]'
)
SETTINGS = benchmark.Settings(num_steps=30, num_seeds=2, num_rates=3, wall_clock=False)
ADAM = candidates.BASELINES["Adam"]
WILD = candidates.from_import_path(
    '{"optimizer": "keras.optimizers:SGD", "config": {"learning_rate": 1e20}, "tuned": false,'
    ' "name": "wild"}'
)

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("evaluate")


class Counting:
    """Counts the runs of a training."""

    def __init__(self, monkeypatch):
        self.runs = []
        for name in ("train_rules", "train_keras"):
            monkeypatch.setattr(benchmark._Program, name, self._counted(name))

    def _counted(self, name):
        original = getattr(benchmark._Program, name)

        def run(program, *arguments):
            self.runs.append(name)
            return original(program, *arguments)

        return run


def run(directory, *others, settings=SETTINGS):
    store = Store(str(directory))
    return benchmark.run(suite.parse(TASKS), [*others, ADAM], settings, store)


def test_another_optimizer_costs_only_its_own_runs(tmp_path, monkeypatch):
    counting = Counting(monkeypatch)
    first = run(tmp_path)
    # On each of the two tasks: three learning rates, and the fresh problems.
    assert counting.runs == ["train_rules"] * 8
    counting.runs.clear()
    again = run(tmp_path)
    assert counting.runs == []
    both = run(tmp_path, WILD)
    assert counting.runs == ["train_keras"] * 2
    for one, other, third in zip(first, again, both, strict=True):
        losses = one.outcomes["Adam"].bounded.train
        assert (losses == other.outcomes["Adam"].bounded.train).all()
        assert (losses == third.outcomes["Adam"].bounded.train).all()
    # Adam hears nothing. A Keras optimizer might.
    counting.runs.clear()
    run(tmp_path, WILD, settings=SETTINGS._replace(signals_known=False))
    assert counting.runs == ["train_keras"] * 2
    # A learning rate that is tuned for another loss asks for no more tuning.
    counting.runs.clear()
    run(tmp_path, settings=SETTINGS._replace(tune_on="train"))
    assert len(counting.runs) <= 2
    counting.runs.clear()
    run(tmp_path, settings=SETTINGS._replace(num_steps=20))
    assert len(counting.runs) == 8


def test_a_damaged_result_is_named_and_computed_anew(tmp_path, monkeypatch):
    first = run(tmp_path)
    files = sorted(tmp_path.glob("*.npz"))
    for i, file in enumerate(files):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes((content, content[: len(content) // 2], b"", b"{}")[i % 4])
    counting = Counting(monkeypatch)
    with pytest.warns(UserWarning, match="computed anew") as told:
        again = run(tmp_path)
    assert counting.runs == ["train_rules"] * 8
    assert {str(w.message).split("'")[1] for w in told} == {str(file) for file in files}
    assert "cannot be read, and is computed anew" in str(told[0].message)
    for one, other in zip(first, again, strict=True):
        assert (one.outcomes["Adam"].bounded.train == other.outcomes["Adam"].bounded.train).all()


def test_the_learning_rate_is_the_best_of_the_grid(tmp_path):
    better = candidates.HandDesigned("better", rules.Adam, 0.316)
    for result in run(tmp_path, better):
        # Thirty steps are few: of 0.00316, 0.01 and 0.0316 the last is the best.
        assert result.outcomes["Adam"].learning_rate == 0.0316
        assert result.outcomes["Adam"].at_edge
        assert (result.outcomes["better"].metrics.train_ratio > 1.2).all()


def test_the_rates_of_an_earlier_comparison_are_the_middle_of_those_to_try(tmp_path, monkeypatch):
    first = run(tmp_path / "first", WILD)
    report.write(str(tmp_path), first, ["wild"], SETTINGS, "command")
    earlier = str(tmp_path / "results.json")
    counting = Counting(monkeypatch)
    settings = SETTINGS._replace(num_rates=1, rates_from=earlier)
    # Nothing is tuned again: one run on each of the two tasks.
    for one, other in zip(first, run(tmp_path / "again", settings=settings), strict=True):
        assert other.outcomes["Adam"].learning_rate == 0.0316
        assert not other.outcomes["Adam"].at_edge
        assert (other.outcomes["Adam"].bounded.train == one.outcomes["Adam"].bounded.train).all()
    assert counting.runs == ["train_rules"] * 2
    around = run(tmp_path / "around", settings=SETTINGS._replace(rates_from=earlier))
    assert learning_rates.grid(0.0316, 5) == learning_rates.grid(0.01, 7)[2:]
    assert {result.outcomes["Adam"].learning_rate for result in around} <= {0.01, 0.0316, 0.1}
    # An optimizer that is not in it, or a task, is named before any work starts.
    counting.runs.clear()
    assert set(learning_rates.check(earlier, suite.parse(TASKS), ["Adam"])) == {
        entry.config.key for entry in suite.parse(TASKS)
    }
    soap = candidates.BASELINES["SOAP"]
    with pytest.raises(ValueError, match=r"results.json', .*none for \['SOAP'\] on 0/quadratic"):
        run(tmp_path / "again", soap, settings=settings)
    with pytest.raises(ValueError, match=r"none for \['Adam'\] on heldout_easy/0"):
        learning_rates.check(earlier, suite.parse("heldout_easy:1"), ["Adam"])
    flags.FLAGS(["evaluate", f"--out_dir={tmp_path / 'x'}", f"--rates_from={earlier}"])
    try:
        with pytest.raises(app.UsageError, match=r"none for \['SGD, momentum', .*`--baselines`"):
            binary.main(["evaluate"])
    finally:
        flags.FLAGS.unparse_flags()
    assert not (tmp_path / "x").exists()
    assert counting.runs == []


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"tasks": []}',
        '{"tasks": {"a": {"config": {"family": "quadratic"}, "optimizers": {}}}}',
        '{"tasks": {"a": {"config": {"family": "q", "architecture": {}, "setting": {}}, '
        '"optimizers": {"Adam": {"learning_rate": "0.1"}}}}}',
        '{"tasks": {"a": {"config": {"family": "q", "architecture": {}, "setting": {}}, '
        '"optimizers": {"Adam": {"learning_rate": NaN}}}}}',
    ],
)
def test_earlier_results_that_cannot_be_read_are_named(tmp_path, content):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match="`--rates_from` must be the results.json of an earlier"):
        learning_rates.read(str(file))


def test_adam_goes_on_to_see_when_it_reaches_the_end_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_LONGER_RATES", (0.0,))
    (result, *_) = run(tmp_path, settings=SETTINGS._replace(longer=3, num_rates=1))
    own, losses = result.outcomes["Adam"].metrics, result.outcomes["Adam"].bounded.train
    # The longer training begins as the other, so Adam is at its own end when it first was there.
    expected = metrics.steps_to(losses, losses[-1]) / SETTINGS.num_steps
    np.testing.assert_allclose(own.end_ratio, expected)
    summary = metrics.summarise([own], [own.train_ratio[None]])
    assert summary["quartiles"]["end_ratio"][2] == pytest.approx(own.end_ratio.min())


def test_a_diverging_optimizer_is_counted_and_bounded(tmp_path):
    results = run(tmp_path / "cache", WILD)
    summary = report.write(str(tmp_path / "out"), results, ["wild"], SETTINGS, "command")
    assert (summary["wild"]["diverged"], summary["wild"]["pairs"]) == (4, 4)
    assert summary["Adam"]["diverged"] == 0
    for result in results:
        losses = result.outcomes["wild"].bounded.train
        assert (losses <= 10.01 * abs(result.start)).all()


@pytest.fixture(scope="module")
def two_programs():
    entries = suite.parse(
        '[{"family": "quadratic", "dimension": 2, "condition": 3.0, "noise": 0.01},'
        ' {"family": "quadratic", "dimension": 3, "condition": 3.0, "noise": 0.01}]'
    )
    return entries, [ADAM], SETTINGS._replace(num_steps=10, num_rates=1)


def test_processes_leave_the_results_that_this_process_would(tmp_path, two_programs, monkeypatch):
    alone = benchmark.run(*two_programs, Store(str(tmp_path / "alone")))
    processes.fill(*two_programs, str(tmp_path / "shared"), None, num_workers=2)
    assert not multiprocessing.active_children()
    counting = Counting(monkeypatch)
    together = benchmark.run(*two_programs, Store(str(tmp_path / "shared")))
    assert counting.runs == []
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one.outcomes["Adam"].bounded, other.outcomes["Adam"].bounded, strict=True):
            assert np.array_equal(a, b)
    names = [{file.name for file in (tmp_path / x).iterdir()} for x in ("alone", "shared")]
    assert names[0] == names[1]


class Inline(concurrent.futures.Executor):
    """In place of processes: computes at once, and counts."""

    made: ClassVar[list["Inline"]] = []

    def __init__(self, *_):
        self.made.append(self)
        self.keys = []

    def submit(self, function, part, candidates, settings, *_):
        self.keys.append((part[0].config.key, settings.wall_clock))
        future = concurrent.futures.Future()
        future.set_result(None)
        return future


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_process_computes_more_programs_than_it_can_keep(
    num_workers, tmp_path, two_programs, monkeypatch
):
    monkeypatch.setattr(processes, "MOST_PROGRAMS", 1)
    monkeypatch.setattr(processes, "_executor", Inline)
    monkeypatch.setattr(Inline, "made", [])
    entries, candidates, settings = two_programs
    assert processes.are_too_many(entries)
    timed = settings._replace(wall_clock=True)
    processes.fill(entries, candidates, timed, str(tmp_path), None, num_workers)
    # Steps are timed by one process at a time.
    counts = [[timed for _, timed in executor.keys] for executor in Inline.made]
    alone = [[True], [True]]
    assert counts == (alone if num_workers == 1 else [[False, False], *alone])


def test_a_process_that_is_lost_is_told_in_one_line(tmp_path, two_programs, monkeypatch):
    """As the kernel ends one that takes too much memory."""
    # What begins in a process is given its number of threads, here that of a signal.
    monkeypatch.setattr(processes, "_begin", signal.raise_signal)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2 * signal.SIGKILL))
    with pytest.raises(processes.ProcessLost, match="kept: run again, .* --num_workers=2"):
        processes.fill(*two_programs, str(tmp_path), None, num_workers=2)
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory):
    """Of the binary, with a learned optimizer, two baselines and the clock."""
    directory = tmp_path_factory.mktemp("evaluation")
    arguments = [
        "--weights=ours=default",
        f"--tasks={TASKS}",
        "--baselines=Lion",
        "--steps=30",
        "--seeds=2",
        "--rates=3",
        f"--out_dir={directory}",
    ]
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["evaluate", *arguments])
    binary.main(["evaluate"])
    return directory


def test_results_are_json_and_csv(out_dir):
    content = json.loads((out_dir / "results.json").read_text())
    assert set(content) == {"made_by", "settings", "summary", "tasks"}
    assert set(content["summary"]) == {"Adam", "Lion", "ours"}
    assert len(content["tasks"]) == 2
    for task in content["tasks"].values():
        assert task["optimizers"]["Adam"]["train_ratio"] == [1.0, 1.0]
        assert task["optimizers"]["ours"]["learning_rate"] is None
        assert all(own["seconds_per_step"] > 0 for own in task["optimizers"].values())
    with open(out_dir / "results.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        own = content["tasks"][row["task"]]["optimizers"][row["optimizer"]]
        assert float(row["final_test"]) == own["final_test"][int(row["seed"])]


def test_the_page_counts_and_its_tables_agree(tmp_path):
    settings = SETTINGS._replace(num_rates=1)
    results = run(tmp_path / "cache", WILD, settings=settings)[:1]
    report.write(str(tmp_path / "out"), results, ["wild"], settings, "command")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<p>1 task, 2 seeds, 30 steps. " in page
    assert "1 learning rates" not in page
    # Of two seeds, that of one task in the tables over tasks and task by task.
    over_tasks, _, task_by_task = page.partition("<h2>Task by task</h2>")
    ratio = metrics.median(results[0].outcomes["wild"].metrics.train_ratio)
    assert f"<b>{report._short(ratio)}</b>" in over_tasks
    assert f"<td>{report._short(ratio)} <small>" in task_by_task


def test_the_report_needs_no_network(out_dir):
    page = (out_dir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + 2
    assert not re.search(r"(src|href)=.?(http|/|\.)", page)
    assert "$" not in page
    assert "Optimizers hear the number of steps" in page
    assert len(list((out_dir / "curves").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--weights=nowhere", "nowhere"),
        ("--weights=default,default", "different names.*default"),
        ("--weights=Adam=default", "different names.*Adam"),
        ("--optimizer=nonsense", "`optimizer` must be"),
        ("--baselines=Adam,Nonsense", "`--baselines` must be some of.*Nonsense"),
        ("--tasks=nonsense", "`tasks` must be"),
        ("--tasks=quadratic:100000000000", "`tasks` must be"),
        ("--tasks=quadratic:99999999", "`tasks` must have at most"),
        ('--tasks={"family": ["quadratic"]}', "'family' must be one of"),
        ('--tasks={"family": "quadratic", "dimension": 100000000000}', "dimension.*at most"),
        ('--tasks={"family": "quadratic", "dimension": "x"}', "`dimension`"),
        ('--task_overrides={"batch_size": 100000000000}', "batch_size.*at most"),
        ('--optimizer={"optimizer": "keras.optimizers:Adam", "name": 3}', "'name' must be a str"),
        ("--out_dir=/dev/null/x", "cannot be a directory"),
        ("--cache_dir=/dev/null", "cannot be a directory"),
        ("--task_overrides=3", "`--task_overrides` must be a JSON object"),
        ('--augmentation={"loss_scale": 3}', "`--augmentation=.*loss_scale"),
    ],
)
def test_bad_flags_are_refused_before_any_work(flag, message, tmp_path):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["evaluate", f"--out_dir={tmp_path / 'out'}", flag])
    with pytest.raises(app.UsageError, match=message):
        binary.main(["evaluate"])
    assert not (tmp_path / "out").exists()
