"""Every optimizer on every task of a suite."""

import hashlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tqdm

from lopt_keras.version import __version__
from meta import progress, random
from meta.evaluation import metrics, timing
from meta.evaluation.candidates import ADAM, HandDesigned, KerasOptimizer, grid
from meta.evaluation.keras_training import KerasTraining
from meta.evaluation.side_by_side import SideBySide
from meta.evaluation.training import Curves, RuleTraining
from meta.tasks.sampling import distribution
from meta.tasks.sampling.augmentation import Augmented

_FORMAT = 1
"""Of what the store holds: another number whenever the meaning of a result changes."""


class Settings(NamedTuple):
    """How optimizers are compared.

    Attributes:
        num_steps: of each training.
        num_seeds: problems of a task on which all are compared, and as many others, on
            which learning rates are tuned.
        num_rates: learning rates to try.
        tune_on: "validation" or "train", the final loss by which a learning rate is chosen.
        told: whether optimizers hear the number of steps, and rules validation losses, if they
            make use of them.
        wall_clock: whether steps are timed.
        augmentation: dict, the arguments of `Augmented`.
        seed: integer, of all problems.
    """

    num_steps: int = 500
    num_seeds: int = 3
    num_rates: int = 9
    tune_on: str = "validation"
    told: bool = True
    wall_clock: bool = True
    augmentation: Any = {}
    seed: int = 0


class Outcome(NamedTuple):
    """How an optimizer did on a task.

    Attributes:
        learning_rate: the tuned one, or None.
        at_edge: whether that is the lowest or highest that was tried.
        seconds: of a step; NaN if they were not measured.
        bounded: `metrics.Bounded`, its curves.
        figures: `metrics.Metrics`.
    """

    learning_rate: Any
    at_edge: bool
    seconds: float
    bounded: Any
    metrics: Any


class TaskResult(NamedTuple):
    """What happened on a task.

    Attributes:
        entry: of the suite.
        num_parameters: of one problem.
        start: loss before the first step.
        outcomes: dict from the name of an optimizer to `Outcome`.
    """

    entry: Any
    num_parameters: int
    start: float
    outcomes: Any


def run(entries, candidates, settings, store, data_dir=None):
    """Runs what the store lacks, with a progress bar.

    Args:
        entries: list of `suite.Entry`.
        contestants: list, Adam among them.
        settings: `Settings`.
        store: `Store`.
        data_dir: where datasets are prepared.

    Returns:
        List of `TaskResult`, one for each entry.
    """
    results = {}
    groups = distribution.by_program([entry.config for entry in entries])
    names = {entry.config.key: entry for entry in entries}
    with tqdm.tqdm(total=len(entries), unit="task") as bar:
        for configs in groups.values():
            program = _Program(distribution.build(configs, data_dir), settings)
            for variant, config in enumerate(configs):
                entry = names[config.key]
                with progress.telling(bar, entry.name):
                    task = _Task(program, variant, config, store)
                    results[entry.name] = task.compete(entry, candidates)
                bar.update()
    return [results[entry.name] for entry in entries]


class _Program:
    """What tasks of one architecture share: the compiled trainings."""

    def __init__(self, task, settings):
        self.task = Augmented(task, **settings.augmentation) if settings.augmentation else task
        self.settings = settings
        self.num_parameters = sum(int(np.prod(shape)) for shape in task.parameter_shapes())
        self._trainings = {}

    def train_rules(self, rules, thetas, variant, seed):
        """`Curves` of each rule with its theta."""
        training = self._training(tuple(rules), self._rule_training)
        joined = {f"{i}/{k}": x for i, theta in enumerate(thetas) for k, x in theta.items()}
        if len(rules) == 1:
            joined = thetas[0]
        return training([joined] * len(rules), variant, seed)

    def train_keras(self, candidate, rate, variant, seed):
        """`Curves` of a Keras optimizer at a learning rate."""
        training = self._training(candidate.make, self._keras_training)
        return training(rate, variant, seed)

    def _training(self, key, make):
        if key not in self._trainings:
            self._trainings[key] = make(key)
        return self._trainings[key]

    def _rule_training(self, rules):
        rule = rules[0] if len(rules) == 1 else SideBySide(rules)
        s = self.settings
        return RuleTraining(self.task, rule, len(rules), s.num_seeds, s.num_steps, s.told)

    def _keras_training(self, make):
        s = self.settings
        return KerasTraining(self.task, make, s.num_seeds, s.num_steps, s.told)


class _Task:
    """One task: a variant of a program."""

    def __init__(self, program, variant, config, store):
        self._program, self._variant, self._store = program, variant, store
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
            "told": settings.told,
        }

    def compete(self, entry, candidates):
        """The `TaskResult`."""
        tuned = [c for c in candidates if c.is_tuned]
        rates = self._tune(tuned)
        curves = self._train(candidates, rates)
        seconds = self._time(candidates)
        start = metrics.start_of(curves[ADAM])
        bounded = {name: metrics.bound(own, start) for name, own in curves.items()}
        outcomes = {}
        for candidate in candidates:
            name = candidate.name
            rate = rates.get(name)
            tried = grid(candidate, self._settings.num_rates) if candidate.is_tuned else []
            own = metrics.compute(bounded[name], bounded[ADAM], start, seconds[name], seconds[ADAM])
            at_edge = len(tried) > 1 and rate in (tried[0], tried[-1])
            outcomes[name] = Outcome(rate, at_edge, seconds[name], bounded[name], own)
        return TaskResult(entry, self._program.num_parameters, start, outcomes)

    def _tune(self, candidates):
        """The best learning rate of each: dict from name to float."""
        grids = {c.name: grid(c, self._settings.num_rates) for c in candidates}
        keys = {c.name: self._key_of("tuning", c, grids[c.name]) for c in candidates}
        missing = [c for c in candidates if self._store.load(keys[c.name]) is None]
        losses = {c.name: {"train": [], "validation": []} for c in missing}
        for i in range(self._settings.num_rates if missing else 0):
            rates = {c.name: grids[c.name][i] for c in missing}
            for name, curves in self._run(missing, rates, self._tuning_seed):
                losses[name]["train"].append(_final(curves.train))
                losses[name]["validation"].append(_final(curves.validation))
        for name, arrays in losses.items():
            self._store.save(keys[name], arrays)
        best = {}
        for name, key in keys.items():
            final = self._store.load(key)[self._settings.tune_on]
            best[name] = grids[name][int(final.mean(axis=1).argmin())]
        return best

    def _train(self, candidates, rates):
        """`Curves` of each on the fresh problems: dict."""
        keys = {c.name: self._key_of("curves", c, rates.get(c.name)) for c in candidates}
        missing = [c for c in candidates if self._store.load(keys[c.name]) is None]
        for name, curves in self._run(missing, rates, self._fresh_seed):
            self._store.save(keys[name], curves._asdict())
        return {name: Curves(**self._store.load(key)) for name, key in keys.items()}

    def _run(self, candidates, rates, seed):
        """Pairs of name and `Curves`; hand-designed rules share a program."""
        hand = [c for c in candidates if isinstance(c, HandDesigned)]
        if hand:
            # One rule has one rate in all runs of its program, and another theta.
            rules = [c.rule(learning_rate=c.middle) for c in hand]
            thetas = [c.rule(learning_rate=rates[c.name]).init_theta() for c in hand]
            curves = self._program.train_rules(rules, thetas, self._variant, seed)
            yield from zip([c.name for c in hand], curves, strict=True)
        for c in candidates:
            if isinstance(c, KerasOptimizer):
                rate = rates.get(c.name)
                yield c.name, self._program.train_keras(c, rate, self._variant, seed)
            elif not isinstance(c, HandDesigned):
                (curves,) = self._program.train_rules([c.rule], [c.theta], self._variant, seed)
                yield c.name, curves

    def _time(self, candidates):
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
        found = {name: self._store.load(key) for name, key in keys.items()}
        reference = float(found[ADAM]["seconds"])
        return {name: reference * float(x["seconds"] / x["adam"]) for name, x in found.items()}

    def _key_of(self, what, candidate, rate):
        own = {"what": what, "optimizer": candidate.identity, "learning_rate": rate}
        return {**self._key, **own}


def _final(losses):
    """Of each seed, the mean over the last 5 % of the steps; infinite if some are not finite."""
    tail = losses[-max(1, round(metrics.SMOOTHED * len(losses))) :]
    return np.where(np.isfinite(tail), tail, np.inf).mean(axis=0)


def _as_timed(candidate):
    if isinstance(candidate, KerasOptimizer):
        return candidate.make
    if isinstance(candidate, HandDesigned):
        rule = candidate.rule(learning_rate=candidate.middle)
        return rule, rule.init_theta()
    return candidate.rule, candidate.theta


def _fingerprint(task, variant, seed):
    """Of what a task draws: another one if its data or its generator are others."""
    setting = task.draw(seed, 1, tf.constant([variant]))
    drawn = task.init(seed, 1, setting), task.batch("train", seed, 1, setting)
    content = b"".join(x.numpy().tobytes() for x in tf.nest.flatten(drawn))
    return hashlib.sha256(content).hexdigest()[:16]
