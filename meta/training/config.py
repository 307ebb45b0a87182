"""What a meta-training is: everything that decides its result, in one place."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from lopt_keras import rules
from lopt_keras.rules.base import UpdateRule
from lopt_keras.validation import check_integer, check_number
from meta import estimators, tasks
from meta.estimators.base import Estimator
from meta.tasks.base import Task
from meta.tasks.mixture import Mixture
from meta.tasks.sampling.augmentation import Augmented
from meta.training.curriculum import Curriculum

SCHEDULES = ("constant", "cosine")
"""Of the outer learning rate, after the warm-up."""

_LARGEST = 2**31 - 1  # Counters and seeds are int32.
_MOST_PARTICLES = _MOST_SHARDS = 2**16
_WITHOUT_EFFECT = (
    *("out_dir", "export_dir", "data_dir", "command", "flags"),
    *("num_workers", "ray_address"),
)
_LATER: dict[str, Any] = {"num_shards": 1, "max_staleness": None}
"""Arguments that runs which go on may not know, with what they mean by that."""


@dataclasses.dataclass(frozen=True)
class MetaTrainingConfig:
    """The arguments of a meta-training. Those of `meta.train` bear the same names.

    Args:
        out_dir: directory of the run: checkpoints, summaries, export.
        task: name of the inner problem, or a `Task`.
        task_config: dict of the task's arguments, with a name.
        dataset: tensorflow-datasets name. Defaults to the task's own.
        tasks: `Mixture` to train on instead of `task`.
        augmentation: dict of the arguments of `Augmented`; empty for none.
        rule: what `rules.get` takes.
        rule_config: dict of the rule's arguments, with a name.
        initial_weights: shipped weights, or the path of a SavedModel, of the same rule to start
            from. Defaults to the rule's own start for the seed.
        outer_state: path of the `outer_state.npz` of an earlier run to go on from. A checkpoint
            in `out_dir` comes first.
        estimator: name of the estimator of the meta-gradient.
        num_outer_steps: outer steps.
        unroll_length, horizon, num_particles, outer_tail, horizon_known, validation_known: as for
            `Estimator`.
        segment_length: as for `Pathwise`, for it and `Merged` only.
        curriculum, shortest_problem, curriculum_steps: `schedule`, `shortest` and `num_steps` of
            the `Curriculum`. The steps of a linear or exponential one default to
            `num_outer_steps`.
        es_stddev: standard deviation of the perturbations.
        outer_optimizer: name of a Keras optimizer.
        outer_learning_rate: its learning rate.
        outer_learning_rate_schedule: one of `SCHEDULES`: stay, or fall to zero at
            `num_outer_steps`.
        outer_warmup_steps: outer steps in which it rises from zero.
        outer_gradient_clip: bound on each entry of the meta-gradient.
        outer_gradient_norm_clip: bound on its global norm, applied before that, or None.
        outer_objective: split of the outer loss, one of `estimators.OUTER_SPLITS`.
        trained: regular expression of the entries of theta to train; others stay.
        seed: of everything random.
        checkpoint_every: outer steps between checkpoints.
        num_shards: estimates in each outer step, each with `num_particles` particles and inner
            problems of its own. Their mean moves theta.
        num_workers: processes on Ray that compute the shards; 0 for this process. Theta does not
            depend on it.
        ray_address: of a Ray cluster. Defaults to workers on this machine.
        max_staleness: how many outer steps old the theta of an estimate may be. Then nobody waits
            for slow workers, and theta depends on timing. By default, each outer step waits for
            all its shards.
        export_dir: of the SavedModel. Defaults to `out_dir/export`.
        data_dir: where datasets are prepared.
        command: how the run was started, for its metadata.
        flags: what must be the same when the run is resumed, as JSON can hold it. Defaults to
            all arguments that have an effect on theta.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    out_dir: Any
    task: Any = "digits_mlp"
    task_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dataset: str | None = None
    tasks: Mixture | None = None
    augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rule: Any = "factored_mlp"
    rule_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    initial_weights: Any = None
    outer_state: Any = None
    estimator: str = "pes"
    num_outer_steps: int = 1000
    unroll_length: int = 20
    horizon: int | None = None
    segment_length: int | None = None
    curriculum: str = "constant"
    shortest_problem: int | None = None
    curriculum_steps: int | None = None
    num_particles: int = 32
    es_stddev: float = 0.01
    outer_optimizer: str = "adam"
    outer_learning_rate: float = 1e-3
    outer_learning_rate_schedule: str = "constant"
    outer_warmup_steps: int = 0
    outer_gradient_clip: float = 1.0
    outer_gradient_norm_clip: float | None = None
    outer_objective: str = "validation"
    outer_tail: float = 1.0
    horizon_known: float = 1.0
    validation_known: float = 1.0
    trained: str = ".*"
    seed: int = 0
    checkpoint_every: int = 100
    num_shards: int = 1
    num_workers: int = 0
    ray_address: str | None = None
    max_staleness: int | None = None
    export_dir: Any = None
    data_dir: Any = None
    command: str | None = None
    flags: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_workers()
        for name in ("es_stddev", "outer_learning_rate", "outer_gradient_clip", "outer_tail"):
            _check_positive(name, getattr(self, name))
        if self.outer_gradient_norm_clip is not None:
            _check_positive("outer_gradient_norm_clip", self.outer_gradient_norm_clip)
        for name in ("horizon_known", "validation_known"):
            check_number(name, getattr(self, name), high=np.nextafter(1.0, 2.0))
        for name, known in (
            ("estimator", estimators.NAMES),
            ("outer_learning_rate_schedule", SCHEDULES),
            ("outer_objective", estimators.OUTER_SPLITS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"`{name}` must be one of {known}. Received: {name}={getattr(self, name)!r}"
                )
        default: tuple[Any, ...] = (MetaTrainingConfig.task, {}, None)
        if self.tasks is not None and (self.task, self.task_config, self.dataset) != default:
            raise ValueError(
                "`tasks` excludes `task`, `task_config` and `dataset`. Received: "
                f"task={self.task!r}, task_config={self.task_config}, dataset={self.dataset!r}"
            )

    def _check_counts(self) -> None:
        for name in ("num_outer_steps", "unroll_length"):
            check_integer(name, getattr(self, name), low=1, high=_LARGEST)
        check_integer("num_particles", self.num_particles, low=2, high=_MOST_PARTICLES)
        check_integer("seed", self.seed, low=0, high=_LARGEST)
        check_integer("checkpoint_every", self.checkpoint_every, low=1)
        for name in ("segment_length", "shortest_problem", "curriculum_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), low=1)
        if self.horizon is not None:
            check_integer("horizon", self.horizon, low=1, high=_LARGEST)
        check_integer("outer_warmup_steps", self.outer_warmup_steps, low=0)
        if self.outer_warmup_steps >= self.num_outer_steps:
            raise ValueError(
                f"`outer_warmup_steps` must be less than num_outer_steps={self.num_outer_steps}. "
                f"Received: outer_warmup_steps={self.outer_warmup_steps}"
            )

    def _check_workers(self) -> None:
        check_integer("num_shards", self.num_shards, low=1, high=_MOST_SHARDS)
        check_integer("num_workers", self.num_workers, low=0)
        if self.num_workers > self.num_shards:
            raise ValueError(
                f"`num_workers` must be at most num_shards={self.num_shards}: a shard is computed "
                f"by one worker. Received: num_workers={self.num_workers}"
            )
        for name in ("ray_address", "max_staleness"):
            value = getattr(self, name)
            if value is not None and not self.num_workers:
                raise ValueError(
                    f"`{name}` is for workers, which `num_workers` must ask for. "
                    f"Received: {name}={value!r} with num_workers=0"
                )
        if self.max_staleness is not None:
            check_integer("max_staleness", self.max_staleness, low=0)

    @property
    def problem_length(self) -> int:
        """Inner steps of the longest problems."""
        return self.horizon or self.unroll_length

    @property
    def deciding(self) -> dict[str, Any]:
        """What must be the same when the run is resumed, as JSON can hold it: dict."""
        given = self.flags
        if given is None:
            fields = (field.name for field in dataclasses.fields(self))
            given = {n: _plain(getattr(self, n)) for n in fields if n not in _WITHOUT_EFFECT}
        return {n: x for n, x in given.items() if n not in _LATER or x != _LATER[n]}

    def make_rule(self) -> UpdateRule:
        """The `UpdateRule`."""
        return rules.get(self.rule, **self.rule_config)

    def make_task(self) -> Task:
        """The `Task`, before it is augmented; not of a mixture."""
        if not isinstance(self.task, str):
            return self.task
        config = {"dataset": self.dataset, **self.task_config}
        try:
            return tasks.get(self.task, data_dir=self.data_dir, **config)
        except (MemoryError, OverflowError, TypeError) as error:
            raise ValueError(
                f"`task_config={self.task_config}` does not fit the task {self.task}: {error!r}"
            ) from error

    def augmented(self, task: Task) -> Task:
        """A task in its disguise."""
        if not self.augmentation:
            return task
        try:
            return Augmented(task, **self.augmentation)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`augmentation={self.augmentation}` does not fit: {error}") from error

    def make_estimator(self, rule: UpdateRule, task: Task) -> Estimator:
        """The `Estimator` on a task, which is augmented for it."""
        recomputation = {}
        if self.segment_length is not None:
            recomputation["segment_length"] = self.segment_length
        return estimators.get(
            self.estimator,
            rule,
            self.augmented(task),
            horizon=self.problem_length,
            num_particles=self.num_particles,
            stddev=self.es_stddev,
            unroll_length=self.unroll_length,
            outer_split=self.outer_objective,
            outer_tail=self.outer_tail,
            horizon_known=self.horizon_known,
            validation_known=self.validation_known,
            trained=self._trained(rule),
            **recomputation,
        )

    def make_programs(
        self, rule: UpdateRule, task: Task | None = None
    ) -> dict[str, tuple[Estimator, float]]:
        """Dict from the name of a program to its `Estimator` and how often it is trained on.

        Args:
            rule: `UpdateRule`.
            task: what `make_task` gives, if it has been made. The references of a mixture are
                complete.
        """
        if self.tasks is None:
            return {"": (self.make_estimator(rule, task or self.make_task()), 1.0)}
        built = self.tasks.build(self.data_dir)
        return {n: (self.make_estimator(rule, task), weight) for n, (task, weight) in built.items()}

    def _trained(self, rule: UpdateRule) -> list[str]:
        """The names of the entries of theta to train."""
        try:
            return [name for name in rule.theta_shapes() if re.fullmatch(self.trained, name)]
        except re.error as error:
            raise ValueError(
                f"`trained` must be a regular expression. Received: {self.trained}: {error}"
            ) from error

    def make_outer_optimizer(self) -> Any:
        """The Keras optimizer of theta."""
        config = {"learning_rate": self.make_learning_rate()}
        try:
            return keras.optimizers.get({"class_name": self.outer_optimizer, "config": config})
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`outer_optimizer` must be the name of a Keras optimizer. "
                f"Received: outer_optimizer={self.outer_optimizer}. {error}"
            ) from error

    def make_learning_rate(self) -> Any:
        """Of the outer optimizer: a number, or the Keras schedule of warm-up and decay."""
        rate, warmup = self.outer_learning_rate, self.outer_warmup_steps
        decays = self.outer_learning_rate_schedule == "cosine"
        if not decays and not warmup:
            return rate
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else rate,
            decay_steps=self.num_outer_steps - warmup,
            alpha=0.0 if decays else 1.0,
            warmup_target=rate if warmup else None,
            warmup_steps=warmup,
        )

    def make_curriculum(self) -> Curriculum:
        """The `Curriculum`."""
        num_steps = self.curriculum_steps
        if num_steps is None and self.curriculum in ("linear", "exponential"):
            num_steps = self.num_outer_steps
        try:
            return Curriculum(
                self.curriculum, self.problem_length, self.shortest_problem, num_steps
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"curriculum={self.curriculum}, shortest_problem={self.shortest_problem} and "
                f"curriculum_steps={self.curriculum_steps} do not fit: {error}"
            ) from error


def _check_positive(name: str, value: Any) -> None:
    """Raises unless a number and its square, in float32, in which all is computed, are positive."""
    check_number(name, value, low_open=True)
    with np.errstate(over="ignore"):
        square = np.square(np.float32(value))
    if not 0 < square < np.inf:
        raise ValueError(
            f"`{name}` must be positive, and so must be its square in float32, and finite. "
            f"Received: {name}={value!r}"
        )


def _plain(value: Any) -> Any:
    """An argument as JSON can hold it."""
    if isinstance(value, rules.UpdateRule):
        return rules.serialize(value)
    if isinstance(value, tasks.Task):
        return {"name": value.name, "config": value.get_config()}
    return dataclasses.asdict(value) if isinstance(value, Mixture) else value
