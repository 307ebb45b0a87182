"""Every optimizer on every task of a suite."""

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tqdm

from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Array, Arrays, Tensor, Theta
from lopt_keras.version import __version__
from meta import progress, random
from meta.evaluation import learning_rates, metrics, timing
from meta.evaluation.candidates import (
    ADAM,
    BASELINES,
    Candidate,
    HandDesigned,
    KerasOptimizer,
    Learned,
    Tunable,
)
from meta.evaluation.keras_training import KerasTraining
from meta.evaluation.metrics import Bounded, Metrics
from meta.evaluation.side_by_side import SideBySide
from meta.evaluation.store import Store
from meta.evaluation.suite import Entry
from meta.inner.training import Curves, InnerTraining
from meta.tasks.base import Task
from meta.tasks.sampling import distribution
from meta.tasks.sampling.augmentation import Augmented
from meta.tasks.sampling.distribution import Config

_FORMAT = 1
"""Of what the store holds: another number whenever the meaning of a result changes."""

_TEST_BATCHES = 20
"""Batches of the test split over which a loss at the end is a mean."""


_LONGER_RATES = (0.0, -0.5, -1.0)
"""Decades from the tuned learning rate: a longer training may want a lower one."""

_CURVES = ("train", "validation", "test")
"""What the store calls the parts of `Curves`."""


class Settings(NamedTuple):
    """How optimizers are compared.

    Attributes:
        num_steps: of each training.
        num_seeds: problems of a task on which all are compared, and as many others, on
            which learning rates are tuned.
        num_rates: learning rates to try.
        tune_on: "validation" or "train", the final loss by which a learning rate is chosen.
        signals_known: whether optimizers hear the number of steps, and rules validation losses,
            if they make use of them.
        wall_clock: whether steps are timed.
        augmentation: dict, the arguments of `Augmented`.
        seed: integer, of all problems.
        longer: how many times as many steps the tuned Adam is trained besides, to see when it
            reaches the final losses of others; 1 for not at all.
        rates_from: results.json of an earlier comparison. What it chose for a task is the middle of
            the rates to try there. None for the middle that an optimizer has on all tasks.
    """

    num_steps: int = 500
    num_seeds: int = 3
    num_rates: int = 9
    tune_on: str = "validation"
    signals_known: bool = True
    wall_clock: bool = True
    augmentation: dict[str, Any] = {}
    seed: int = 0
    longer: int = 1
    rates_from: str | None = None


class Outcome(NamedTuple):
    """How an optimizer did on a task.

    Attributes:
        learning_rate: the tuned one, or None.
        at_edge: whether that is the lowest or highest that was tried.
        seconds: of a step; NaN if they were not measured.
        bounded: `metrics.Bounded`, its curves.
        metrics: `metrics.Metrics`.
    """

    learning_rate: float | None
    at_edge: bool
    seconds: float
    bounded: Bounded
    metrics: Metrics


class TaskResult(NamedTuple):
    """What happened on a task.

    Attributes:
        entry: of the suite.
        num_parameters: of one problem.
        start: loss before the first step.
        outcomes: dict from the name of an optimizer to `Outcome`.
    """

    entry: Entry
    num_parameters: int
    start: float
    outcomes: dict[str, Outcome]


def run(
    entries: Sequence[Entry],
    candidates: Sequence[Candidate],
    settings: Settings,
    store: Store,
    data_dir: str | None = None,
    quiet: bool = False,
) -> list[TaskResult]:
    """Runs what the store lacks, with a progress bar.

    Args:
        entries: list of `suite.Entry`.
        candidates: list, Adam among them.
        settings: `Settings`.
        store: `Store`.
        data_dir: where datasets are prepared.
        quiet: whether there is no progress bar.

    Returns:
        List of `TaskResult`, one for each entry.

    Raises:
        ValueError: if `settings.rates_from` cannot be read, or lacks a rate.
    """
    results = {}
    chosen: learning_rates.Chosen = {}
    if settings.rates_from is not None:
        tuned = [c.name for c in candidates if c.is_tuned]
        chosen = learning_rates.check(settings.rates_from, entries, tuned)
    groups = distribution.by_program([entry.config for entry in entries])
    names = {entry.config.key: entry for entry in entries}
    with tqdm.tqdm(total=len(entries), unit="task", disable=quiet) as bar:
        for configs in groups.values():
            program = _Program(distribution.build(configs, data_dir), settings)
            for variant, config in enumerate(configs):
                entry = names[config.key]
                with progress.telling(bar, entry.name):
                    middles = chosen.get(config.key, {})
                    task = _Task(program, variant, config, store, middles)
                    results[entry.name] = task.compete(entry, candidates)
                bar.update()
    return [results[entry.name] for entry in entries]


class _Program:
    """What tasks of one architecture share: the compiled trainings."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task = Augmented(task, **settings.augmentation) if settings.augmentation else task
        self.settings = settings
        self.num_parameters = sum(int(np.prod(shape)) for shape in task.parameter_shapes())
        self._trainings: dict[Hashable, Any] = {}

    def train_rules(
        self, rules: Sequence[UpdateRule], thetas: Sequence[Theta], variant: int, seed: Tensor
    ) -> Sequence[Curves]:
        """`Curves` of each rule with its theta."""
        training = self._training(tuple(rules), self._rule_training)
        joined: Theta = {f"{i}/{k}": x for i, theta in enumerate(thetas) for k, x in theta.items()}
        if len(rules) == 1:
            joined = thetas[0]
        return training([joined] * len(rules), seed, variant)

    def train_longer(
        self, rule: UpdateRule, thetas: Sequence[Theta], variant: int, seed: Tensor
    ) -> list[Array]:
        """The train losses of longer trainings by one rule, with each theta."""
        curves = (self._longer.train_rules([rule], [theta], variant, seed)[0] for theta in thetas)
        return [own.train for own in curves]

    @functools.cached_property
    def _longer(self) -> "_Program":
        s = self.settings
        # The task is disguised already.
        settings = s._replace(num_steps=s.longer * s.num_steps, augmentation={})
        return _Program(self.task, settings)

    def train_keras(
        self, candidate: KerasOptimizer, rate: float | None, variant: int, seed: Tensor
    ) -> Curves:
        """`Curves` of a Keras optimizer at a learning rate."""
        training = self._training(candidate.make, self._keras_training)
        return training(rate, seed, variant)

    def _training(self, key: Hashable, make: Callable[[Any], Any]) -> Any:
        if key not in self._trainings:
            self._trainings[key] = make(key)
        return self._trainings[key]

    def _rule_training(self, rules: tuple[UpdateRule, ...]) -> InnerTraining:
        rule = rules[0] if len(rules) == 1 else SideBySide(rules)
        s = self.settings
        shape = len(rules), s.num_seeds, s.num_steps
        return InnerTraining(self.task, rule, *shape, s.signals_known, test_batches=_TEST_BATCHES)

    def _keras_training(self, make: Callable[[], keras.optimizers.Optimizer]) -> KerasTraining:
        s = self.settings
        return KerasTraining(
            self.task, make, s.num_seeds, s.num_steps, s.signals_known, _TEST_BATCHES
        )


class _Task:
    """One task: a variant of a program."""

    def __init__(
        self,
        program: _Program,
        variant: int,
        config: Config,
        store: Store,
        middles: Mapping[str, float],
    ) -> None:
        self._program, self._variant, self._store = program, variant, store
        self._middles = middles
        self._settings = settings = program.settings
        self._tuning_seed, self._fresh_seed = (
            random.fold_in(random.seed(settings.seed), i) for i in (2, 3)
        )
        common = {
            "format": _FORMAT,
            "augmentation": settings.augmentation,
            "steps": settings.num_steps,
            "versions": [__version__, keras.__version__, tf.__version__],
        }
        # A step takes the same time whatever the settings of a task.
        self._timing_key = {**common, "what": "seconds", "task": config.program}
        self._key = {
            **common,
            "task": config.key,
            "drawn": _fingerprint(program.task, variant, self._fresh_seed),
            "seeds": [settings.seed, settings.num_seeds],
        }

    def compete(self, entry: Entry, candidates: Sequence[Candidate]) -> TaskResult:
        """The `TaskResult`."""
        tuned = [c for c in candidates if not isinstance(c, Learned) and c.is_tuned]
        grids = {
            c.name: learning_rates.grid(
                self._middles.get(c.name, c.middle), self._settings.num_rates
            )
            for c in tuned
        }
        rates = self._tune(tuned, grids)
        curves = self._train(candidates, rates)
        seconds = self._time(candidates)
        start = metrics.start_of(curves[ADAM])
        bounded = {name: metrics.bound(own, start) for name, own in curves.items()}
        longer = self._longer(rates[ADAM], start)
        outcomes = {}
        for candidate in candidates:
            name = candidate.name
            rate = rates.get(name)
            tried = grids.get(name, [])
            own = metrics.compute(
                bounded[name], bounded[ADAM], start, seconds[name], seconds[ADAM], longer
            )
            at_edge = len(tried) > 1 and rate in (tried[0], tried[-1])
            outcomes[name] = Outcome(rate, at_edge, seconds[name], bounded[name], own)
        return TaskResult(entry, self._program.num_parameters, start, outcomes)

    def _tune(
        self, candidates: Sequence[Tunable], grids: Mapping[str, list[float]]
    ) -> dict[str, float]:
        """The best learning rate of each: dict from name to float."""
        if self._settings.num_rates == 1:
            return {name: rates[0] for name, rates in grids.items()}
        keys = {c.name: self._key_of("tuning", c, grids[c.name]) for c in candidates}
        missing = [c for c in candidates if self._store.load(keys[c.name]) is None]
        losses: dict[str, dict[str, list[Array]]] = {
            c.name: {"train": [], "validation": []} for c in missing
        }
        for i in range(self._settings.num_rates if missing else 0):
            rates = {c.name: grids[c.name][i] for c in missing}
            for name, curves in self._run(missing, rates, self._tuning_seed):
                losses[name]["train"].append(metrics.final(curves.train))
                losses[name]["validation"].append(metrics.final(curves.held_out))
        for name, arrays in losses.items():
            self._store.save(keys[name], arrays)
        best = {}
        for name, key in keys.items():
            final = self._stored(key)[self._settings.tune_on]
            best[name] = grids[name][int(final.mean(axis=1).argmin())]
        return best

    def _train(
        self, candidates: Sequence[Candidate], rates: Mapping[str, float]
    ) -> dict[str, Curves]:
        """`Curves` of each on the fresh problems: dict."""
        keys = {c.name: self._key_of("curves", c, rates.get(c.name)) for c in candidates}
        missing = [c for c in candidates if self._store.load(keys[c.name]) is None]
        for name, curves in self._run(missing, rates, self._fresh_seed):
            kept = zip(_CURVES, curves, strict=True)
            self._store.save(keys[name], dict(kept))
        loaded = {name: self._stored(key) for name, key in keys.items()}
        return {name: Curves(*(own[x] for x in _CURVES)) for name, own in loaded.items()}

    def _longer(self, rate: float, start: float) -> list[Array]:
        """The tuned Adam's losses in longer trainings, at its rate and at lower ones."""
        if self._settings.longer == 1:
            return []
        adam = BASELINES[ADAM]
        rates = [rate * 10.0**decades for decades in _LONGER_RATES]
        key = {**self._key_of("longer", adam, rates), "longer": self._settings.longer}
        if self._store.load(key) is None:
            rules = [adam.rule(learning_rate=rate) for rate in rates]
            losses = self._program.train_longer(
                adam.rule(learning_rate=adam.middle),
                [rule.init_theta() for rule in rules],
                self._variant,
                self._fresh_seed,
            )
            self._store.save(key, {str(i): own for i, own in enumerate(losses)})
        steps = self._settings.num_steps
        found = self._stored(key)
        return [metrics.bound_longer(found[str(i)], start, steps) for i in range(len(rates))]

    def _run(
        self, candidates: Sequence[Candidate], rates: Mapping[str, float], seed: Tensor
    ) -> Iterator[tuple[str, Curves]]:
        """Pairs of name and `Curves`; hand-designed rules share a program."""
        hand = [c for c in candidates if isinstance(c, HandDesigned)]
        if hand:
            # One rule has one rate in all runs of its program, and another theta.
            rules = [c.rule(learning_rate=c.middle) for c in hand]
            thetas = [c.rule(learning_rate=rates[c.name]).init_theta() for c in hand]
            together = self._program.train_rules(rules, thetas, self._variant, seed)
            yield from zip([c.name for c in hand], together, strict=True)
        for c in candidates:
            if isinstance(c, KerasOptimizer):
                rate = rates.get(c.name)
                yield c.name, self._program.train_keras(c, rate, self._variant, seed)
            elif not isinstance(c, HandDesigned):
                (curves,) = self._program.train_rules([c.rule], [c.theta], self._variant, seed)
                yield c.name, curves

    def _time(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """The seconds of a step of each: dict."""
        if not self._settings.wall_clock:
            return dict.fromkeys([c.name for c in candidates], np.nan)
        keys = {c.name: {**self._timing_key, "optimizer": c.identity} for c in candidates}
        missing = [c for c in candidates if self._store.load(keys[c.name]) is None]
        if missing:
            # Adam anew with each, so that both were measured in the same minute.
            adam = [c for c in candidates if c.name == ADAM and c not in missing]
            timed = [*missing, *adam]
            measured = timing.measure(
                self._program.task, [_as_timed(c) for c in timed], self._settings.num_steps
            )
            own_adam = measured[[c.name for c in timed].index(ADAM)]
            for c, seconds in zip(missing, measured, strict=False):
                self._store.save(keys[c.name], {"seconds": seconds, "adam": own_adam})
        found = {name: self._stored(key) for name, key in keys.items()}
        reference = float(found[ADAM]["seconds"])
        return {name: reference * float(x["seconds"] / x["adam"]) for name, x in found.items()}

    def _stored(self, key: dict[str, Any]) -> Arrays:
        """What the store has for sure, as it was saved just now if it was not there before."""
        arrays = self._store.load(key)
        if arrays is None:
            raise RuntimeError(f"The result {key} was saved, and cannot be read.")
        return arrays

    def _key_of(self, what: str, candidate: Candidate, rate: Any) -> dict[str, Any]:
        # Told or not, the same run serves an optimizer that hears nothing.
        deaf = not isinstance(candidate, KerasOptimizer) and not candidate.rule.signals
        own = {"what": what, "optimizer": candidate.identity, "learning_rate": rate}
        return {**self._key, **own, "told": self._settings.signals_known and not deaf}


def _as_timed(candidate: Candidate) -> timing.Timed:
    if isinstance(candidate, KerasOptimizer):
        return candidate.make
    if isinstance(candidate, HandDesigned):
        rule = candidate.rule(learning_rate=candidate.middle)
        return rule, rule.init_theta()
    return candidate.rule, candidate.theta


def _fingerprint(task: Task, variant: int, seed: Tensor) -> str:
    """Of what a task draws: another one if its data or its generator are others."""
    setting = task.draw(seed, 1, tf.constant([variant]))
    drawn = task.init(seed, 1, setting), task.batch("train", seed, 1, setting)
    content = b"".join(x.numpy().tobytes() for x in tf.nest.flatten(drawn))
    return hashlib.sha256(content).hexdigest()[:16]
