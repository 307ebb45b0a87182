"""A whole meta-training: from its config to an export."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import export
from export import checkpoint
from lopt_keras import pretrained, rules, saved_model
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Arrays
from meta import memory
from meta.tasks.base import Task
from meta.training import outer_state, ray_crew, run_directory
from meta.training.config import MetaTrainingConfig
from meta.training.crew import Crew, CrewFailed
from meta.training.outer_loop import OuterLoop


def train(config: MetaTrainingConfig) -> "MetaTraining":
    """Meta-trains, or goes on where an earlier call with the same config was cut off.

    Args:
        config: `MetaTrainingConfig`.

    Returns:
        `MetaTraining`, exported.

    Raises:
        ValueError: before any work starts, if the config does not fit, or its directory belongs
            to another run or is in use.
        OSError: if something cannot be written; the message says what is kept.
    """
    with started(config) as training:
        training.finish()
    return training


@contextlib.contextmanager
def started(config: MetaTrainingConfig) -> Iterator["MetaTraining"]:
    """A `MetaTraining`, restored; while the block runs, its directory is this process's.

    Args:
        config: as for `train`.

    Raises:
        ValueError: as for `train`.
    """
    plan = _Plan(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_directory.lock(config.out_dir))
        crew: Crew | None = None
        if config.num_workers:
            crew = ray_crew.RayCrew(config)
            stack.callback(crew.close)
        training = plan.build(crew)
        training.claim()
        yield training


class MetaTraining:
    """A meta-training of which the programs are traced.

    Attributes:
        rule: `UpdateRule`.
        task: `Task`, as it is before it is augmented; None of a mixture.
        weights: dict from the name of a program to how often it is trained on.
        loop: `OuterLoop`.
    """

    def __init__(
        self,
        config: MetaTrainingConfig,
        rule: UpdateRule,
        task: Task | None,
        weights: dict[str, float],
        loop: OuterLoop,
        description: dict[str, Any],
    ) -> None:
        self.rule, self.task, self.weights, self.loop = rule, task, weights, loop
        self._config, self._description = config, description

    @property
    def processes(self) -> list[int]:
        """The numbers of the worker processes that have started."""
        return self.loop.crew.processes

    @property
    def export_dir(self) -> str:
        """Where the SavedModel goes."""
        return _export_dir(self._config)

    def claim(self) -> None:
        """Makes the directory this run's, and restores what it holds."""
        config, loop = self._config, self.loop
        is_begun = os.path.exists(os.path.join(config.out_dir, run_directory.RUN_FILE))
        self._description = run_directory.claim(config.out_dir, self._description)
        if not loop.restore() and config.outer_state is not None:
            loop.go_on_from(config.outer_state)
        elif is_begun and not loop.step:
            print(f"There is no checkpoint in {config.out_dir}: starting at outer step 0.")
        if loop.step:
            print(f"Resuming at outer step {loop.step}.")

    def finish(self) -> None:
        """Takes the outer steps that are left, and exports theta.

        Raises:
            OSError: if something cannot be written; the message says what is kept.
            CrewFailed: if a shard cannot be computed; likewise.
        """
        loop = self.loop
        try:
            loop.run(self._config.num_outer_steps)
        except CrewFailed as error:
            raise CrewFailed(
                f"{error}. Outer step {loop.step} is kept: run again to go on from there."
            ) from error
        print(f"Outer steps: {loop.seconds:.0f} s, compilation: {loop.compile_seconds:.0f} s.")
        try:
            self.export()
        except OSError as error:
            raise OSError(
                f"{error}. The checkpoint of outer step {loop.step} is whole: run again to export."
            ) from error
        print(f"SavedModel: {self.export_dir}")

    def export(self) -> None:
        """Writes theta as a SavedModel, with what it comes from."""
        loop = self.loop
        metadata = checkpoint.provenance(
            self._description, loop.step, loop.smoothed_loss, loop.seconds
        )
        export.save(self.export_dir, self.rule, loop.theta, metadata, overwrite=True)


class _Plan:
    """What a config asks for, checked, before anything is written or takes long.

    Attributes:
        description: what `run.json` is to hold: dict.
    """

    def __init__(self, config: MetaTrainingConfig) -> None:
        self._config = config
        self._rule = config.make_rule()
        saved_model.check_rule_size(self._rule)
        self._optimizer, self._curriculum = config.make_outer_optimizer(), config.make_curriculum()
        self._initial_theta, origin = _initial_theta(config.initial_weights, self._rule)
        self.description = {
            "flags": config.deciding,
            "rule": rules.serialize(self._rule),
            "seed": config.seed,
            **origin,
        }
        if config.command is not None:
            self.description["command"] = config.command
        if config.num_workers:
            ray_crew.check_installed()
        if config.max_staleness is not None:
            self.description["depends_on_timing"] = True
        if config.outer_state is not None:
            outer_state.read(config.outer_state)
            self.description["outer_state_sha256"] = outer_state.digest(config.outer_state)
        _check_directories(config, self.description)
        if config.tasks:
            self._task = None
            tried = [example.build(config.data_dir) for example in config.tasks.examples()]
        else:
            self._task = config.make_task()
            tried = [self._task]
        self.description |= _described(config, self._task)
        for task in tried:
            memory.check(task, config.num_particles)
        config.make_estimator(self._rule, tried[0])  # Of a mixture, the others differ in size only.

    def build(self, crew: Crew | None = None) -> MetaTraining:
        """The `MetaTraining`, its programs traced, here or by a `Crew`."""
        config, mixture = self._config, self._config.tasks
        if mixture is not None:
            mixture.complete(config.data_dir)
            self.description["references_sha256"] = mixture.references_digest(config.data_dir)
        programs = config.make_programs(self._rule, self._task)
        loop = OuterLoop(
            programs,
            self._optimizer,
            config.seed,
            config.out_dir,
            config.checkpoint_every,
            config.outer_gradient_clip,
            config.outer_gradient_norm_clip,
            self._curriculum,
            self._initial_theta,
            config.num_shards,
            crew,
            config.max_staleness,
        )
        weights = {name: weight for name, (_, weight) in programs.items()}
        return MetaTraining(config, self._rule, self._task, weights, loop, self.description)


def _described(config: MetaTrainingConfig, task: Task | None) -> dict[str, Any]:
    """What the run's metadata says of what it trains on: dict."""
    if task is None or config.tasks is not None:
        return {"tasks": dataclasses.asdict(config.tasks)}  # type: ignore[arg-type]
    name = config.task if isinstance(config.task, str) else task.name
    return {"task": {"name": name, "config": task.get_config()}}


def _initial_theta(weights: Any, rule: UpdateRule) -> tuple[Arrays | None, dict[str, str]]:
    """Where theta starts, or None, and what the run's metadata says of it."""
    if weights is None:
        return None, {}
    try:
        _, theta, metadata = saved_model.read(pretrained.find(weights))
        return rule.check_theta(theta), {"initial_weights_sha256": metadata["sha256"]}
    except ValueError as error:
        raise ValueError(
            f"`initial_weights` must be weights of the rule {rule}. "
            f"Received: initial_weights={weights}. {error}"
        ) from error


def _export_dir(config: MetaTrainingConfig) -> str:
    return config.export_dir or os.path.join(config.out_dir, "export")


def _check_directories(config: MetaTrainingConfig, description: dict[str, Any]) -> None:
    """Raises if something cannot be written, or would be replaced that is not this run's."""
    for name in ("out_dir", "export_dir", "data_dir"):
        if getattr(config, name) is not None:
            run_directory.check_writable(getattr(config, name), name)
    run_directory.check(config.out_dir, description)
    export_dir, out_dir = (os.path.abspath(x) for x in (_export_dir(config), config.out_dir))
    if os.path.commonpath([export_dir, out_dir]) == export_dir:
        raise ValueError(
            f"`--export_dir={config.export_dir}` must not hold --out_dir={config.out_dir}. "
            "An export is a directory of its own."
        )
    is_empty = os.path.isdir(export_dir) and not os.listdir(export_dir)
    if is_empty or not os.path.lexists(export_dir):
        return
    if not os.path.isfile(os.path.join(export_dir, saved_model.METADATA_FILE)):
        raise ValueError(
            f"The run is to be exported to {export_dir!r}, where there is something that is not an "
            "export. Choose another --export_dir."
        )
    if config.export_dir is None:
        return
    exported = saved_model.read_metadata(export_dir).get("flags") or {}
    if run_directory.with_new_names(exported) != description["flags"]:
        raise ValueError(
            f"`--export_dir={config.export_dir}` holds the export of another run. Choose another."
        )
