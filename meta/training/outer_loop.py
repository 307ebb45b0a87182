"""The outer loop: meta-gradients into theta, checkpoints, summaries, progress."""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from export import backend
from export import checkpoint as run_checkpoint
from lopt_keras.types import Arrays, Tensors
from meta import files, progress
from meta.estimators.base import Estimator
from meta.training import interruption, outer_state, shards
from meta.training.crew import Crew, CrewFailed, LocalCrew
from meta.training.curriculum import Curriculum
from meta.training.shards import Estimated, Shards, Unit
from meta.training.worker import Worker

_SMOOTHING = 0.98
_SUMMARY_EVERY = 10
_KEPT_CHECKPOINTS = 3


class OuterLoop:
    """Meta-trains theta, and can be killed and resumed at any moment.

    Each outer step is made of shards: theta goes out to all of them, each makes an estimate of
    its own, and the mean of the estimates moves theta. All randomness of a shard at outer step k
    comes from (seed, shard, k), and all else that a step depends on is in the checkpoint: a
    resumed run ends with the same theta, bit for bit, as one that was never interrupted,
    whatever crew computes it.

    Attributes:
        crew: the `Crew`.

    Args:
        estimators: an `Estimator`, or a dict from name to `(Estimator, weight)` of several
            that share rule and horizon, each with its own tasks. In each outer step, a shard
            uses one of them, drawn in proportion to the weights (`Shards`). The part of a name
            before a "/" is a family of tasks, which has its own summaries.
        outer_optimizer: any Keras optimizer.
        seed: integer.
        out_dir: where checkpoints and TensorBoard summaries go.
        checkpoint_every: outer steps between checkpoints.
        gradient_clip: bound on the magnitude of each entry of the meta-gradient.
        gradient_norm_clip: bound on its global norm, applied before that, or None.
        curriculum: `Curriculum` of the problems' lengths, at most the estimator's
            horizon. Defaults to the horizon itself.
        initial_theta: dict of arrays to start from. Defaults to the rule's own start
            for the seed.
        num_shards: estimates in each outer step.
        crew: `Crew` that makes them. Defaults to this process.
        max_staleness: how many outer steps old the theta of an estimate may be. By default, each
            outer step waits for its own shards. It needs a `RayCrew`.
    """

    def __init__(
        self,
        estimators: Estimator | Mapping[str, tuple[Estimator, float]],
        outer_optimizer: Any,
        seed: int,
        out_dir: str,
        checkpoint_every: int = 100,
        gradient_clip: float = 1.0,
        gradient_norm_clip: float | None = None,
        curriculum: Curriculum | None = None,
        initial_theta: Mapping[str, Any] | None = None,
        num_shards: int = 1,
        crew: Crew | None = None,
        max_staleness: int | None = None,
    ) -> None:
        if not isinstance(estimators, Mapping):
            estimators = {"": (estimators, 1.0)}
        self._names = list(estimators)
        weights = [weight for _, weight in estimators.values()]
        all_estimators = [estimator for estimator, _ in estimators.values()]
        estimator = all_estimators[0]
        if curriculum is None:
            curriculum = Curriculum("constant", estimator.horizon)
        if curriculum.longest > estimator.horizon:
            raise ValueError(
                f"`curriculum` must not be longer than horizon={estimator.horizon}. "
                f"Received: longest={curriculum.longest}"
            )
        self._optimizer = outer_optimizer
        self._checkpoint_every = checkpoint_every
        self._gradient_clip = gradient_clip
        self._gradient_norm_clip = gradient_norm_clip
        self._out_dir = out_dir
        self._estimate = progress.Estimate(weights)
        self._latest: dict[str, float] = {}
        theta = estimator.rule.init_theta(seed) if initial_theta is None else initial_theta
        self._theta = {
            name: keras.Variable(value, name=name)
            for name, value in estimator.rule.check_theta(theta).items()
        }
        self._trained = [name for name in self._theta if name in estimator.trained]
        outer_optimizer.build([self._theta[name] for name in self._trained])
        self._shards = Shards(seed, num_shards, weights)
        self.crew = crew or LocalCrew(Worker(all_estimators, curriculum, seed))
        states = self.crew.begin(self._shards, self._theta_tensors())
        # What the checkpoints are written from. The crew holds the states of the moment.
        self._states = {pair: [tf.Variable(x) for x in state] for pair, state in states.items()}
        self._step = tf.Variable(0, dtype=tf.int64)
        self._smoothed_loss = tf.Variable(np.nan)
        self._seconds = tf.Variable(0.0)
        self._compile_seconds = tf.Variable(0.0)
        self._saved_step: int | None = None
        self._max_staleness = max_staleness
        self._checkpoint = tf.train.Checkpoint(
            theta={name: variable.value for name, variable in self._theta.items()},
            optimizer=[variable.value for variable in outer_optimizer.variables],
            # Called so in the checkpoints of runs that go on.
            workers=[self._states[pair] for pair in self._shards.pairs],
            step=self._step,
            smoothed_loss=self._smoothed_loss,
            seconds=self._seconds,
            compile_seconds=self._compile_seconds,
        )
        self._checkpoints: Any = None
        # Now, not at the first step: see `Worker.trace`.
        self._apply.get_concrete_function(
            {
                name: tf.TensorSpec(x.shape)
                for name, x in self._theta.items()
                if name in self._trained
            }
        )

    @property
    def theta(self) -> Arrays:
        """The meta-parameters: dict of NumPy arrays."""
        return {name: variable.numpy() for name, variable in self._theta.items()}

    @property
    def step(self) -> int:
        """Outer steps taken so far."""
        return int(self._step)

    @property
    def smoothed_loss(self) -> float:
        """Running mean of the meta-loss over about 50 outer steps, bias-corrected."""
        return float(self._smoothed_loss)

    @property
    def seconds(self) -> float:
        """Of all outer steps so far, but for the first of each program in each process."""
        return float(self._seconds)

    @property
    def compile_seconds(self) -> float:
        """Of tracing the programs, in this process, and of the first step of each in any."""
        return float(self._compile_seconds) + self.crew.trace_seconds

    def restore(self) -> int:
        """Continues from the newest whole checkpoint in `out_dir`, if there is any.

        Returns:
            The outer step at which it stands.

        Raises:
            ValueError: if there are checkpoints, but none that is whole and of such a loop.
        """
        folder = os.path.join(self._out_dir, run_checkpoint.CHECKPOINTS)
        newest = run_checkpoint.restore_newest(self._checkpoint, self._out_dir, "meta-training")
        if newest is not None:
            self.crew.restore(
                {pair: [x.value() for x in state] for pair, state in self._states.items()}
            )
            self._saved_step = self.step
            _list_checkpoints(folder, newest)
        self._checkpoints = tf.train.CheckpointManager(
            self._checkpoint, folder, max_to_keep=_KEPT_CHECKPOINTS
        )
        return self.step

    def go_on_from(self, file: str) -> None:
        """Takes theta, the outer optimizer's state and the outer step from a file.

        The inner problems begin again. Such a run is reproducible, but it is not the same as one
        that continues from a checkpoint.

        Args:
            file: as `run` writes it into `out_dir`, `outer_state.FILE`.

        Raises:
            ValueError: if the file holds no such state, or that of another rule or optimizer.
        """
        theta, optimizer, numbers = outer_state.read(file)
        shapes = [tuple(v.shape) for v in self._optimizer.variables]
        if set(theta) != set(self._theta) or [x.shape for x in optimizer] != shapes:
            raise ValueError(
                f"{file!r} must hold the state of this rule and this outer optimizer. Received: "
                f"theta of {sorted(theta)}, optimizer variables of {[x.shape for x in optimizer]}"
            )
        for name, value in theta.items():
            self._theta[name].assign(value)
        for variable, value in zip(self._optimizer.variables, optimizer, strict=True):
            variable.assign(value)
        self._step.assign(numbers["step"])
        self._seconds.assign(numbers["seconds"])
        self._smoothed_loss.assign(numbers["smoothed_loss"])

    def _write_outer_state(self) -> None:
        numbers = {
            "step": self.step,
            "seconds": self.seconds,
            "smoothed_loss": self.smoothed_loss,
        }
        optimizer = [variable.numpy() for variable in self._optimizer.variables]
        file = os.path.join(self._out_dir, outer_state.FILE)
        outer_state.write(file, self.theta, optimizer, numbers)

    def run(self, num_steps: int) -> None:
        """Takes outer steps until `num_steps` have been taken in all.

        It restores first, if that was not done.

        Raises:
            OSError: if a checkpoint or the summaries cannot be written; the message says which
                outer step is kept.
            CrewFailed: if a shard cannot be computed. As after an interruption, there is a
                checkpoint of the last outer step.
        """
        if self._checkpoints is None:
            self.restore()
        with self._writing("summaries"):
            writer = tf.summary.create_file_writer(os.path.join(self._out_dir, "summaries"))
        bar = tqdm.tqdm(
            total=num_steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            bar_format=progress.BAR_FORMAT,
        )
        with bar, writer.as_default():
            try:
                self._run(bar, num_steps)
            except (KeyboardInterrupt, CrewFailed):
                self._save()
                raise
            with self._writing("summaries"):
                writer.flush()

    def _run(self, bar: Any, num_steps: int) -> None:
        while self.step < num_steps:
            self._step_and_record(bar)
            if self.step % _SUMMARY_EVERY == 0 or self.step == num_steps:
                self._tell(bar, num_steps)
            if self.step % self._checkpoint_every == 0 or self.step == num_steps:
                self._save()

    def _save(self) -> None:
        """Writes a checkpoint, unless there is one of this outer step."""
        if self._saved_step == self.step or not self.step:
            return
        for pair, state in self.crew.states().items():
            for variable, value in zip(self._states[pair], state, strict=True):
                variable.assign(value)
        with interruption.put_off(), self._writing(f"checkpoint of outer step {self.step}"):
            self._checkpoints.save(checkpoint_number=self.step)
            self._write_outer_state()
            self._saved_step = self.step

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """If a write in this scope fails, the error says in one line what is kept."""
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            kept = self._checkpoints and self._checkpoints.latest_checkpoint
            kept = f"The last whole checkpoint is {kept!r}." if kept else "No checkpoint is kept."
            raise OSError(
                f"The {what} cannot be written to {self._out_dir!r}: "
                f"{backend.reason(error)}. {kept}"
            ) from error

    def _step_and_record(self, bar: Any) -> None:
        start = time.perf_counter()
        units = self._units()
        is_new = any(not self._estimate.is_compiled(unit.program) for unit in units)
        with self._telling_of_compilation(bar) if is_new else contextlib.nullcontext():
            if self._max_staleness is None:
                made = self.crew.estimates(self._theta_tensors(), units)
            else:
                units, made = self.crew.newest(
                    self._theta_tensors(), self.step, len(units), self._max_staleness
                )
        gradient = shards.average([estimated.gradient for estimated in made])
        with interruption.put_off():
            metrics = self._apply(gradient)
            if self._max_staleness is None:
                self.crew.keep(units, made)
        elapsed = time.perf_counter() - start
        is_new = any(estimated.is_new for estimated in made)
        spent = self._compile_seconds if is_new else self._seconds
        spent.assign_add(elapsed)
        for unit, estimated in zip(units, made, strict=True):
            # Of a program that another worker compiles too, the first time counts.
            if not (estimated.is_new and self._estimate.is_compiled(unit.program)):
                self._estimate.record(unit.program, estimated.seconds)
        loss = float(np.mean([estimated.metrics["meta_loss"] for estimated in made]))
        previous = self.smoothed_loss if self.step > 1 else loss
        # A short memory at first, so that the first losses do not linger.
        weight = max(1 - _SMOOTHING, 1 / self.step)
        self._smoothed_loss.assign((1 - weight) * previous + weight * loss)
        self._collect(units, made, metrics)
        bar.update()
        if self.step % _SUMMARY_EVERY == 0:
            with self._writing("summaries"):
                self._summarise()

    def _units(self) -> list[Unit]:
        """What the shards compute in the next outer step."""
        step = self.step  # To read it takes longer than to draw the unit of a shard.
        return [self._shards.unit(shard, step) for shard in range(len(self._shards))]

    def _collect(self, units: Sequence[Unit], made: Sequence[Estimated], metrics: Tensors) -> None:
        """Notes what the next summaries are to tell: means over the shards of each family."""
        by_name: dict[str, list[float]] = {}
        for unit, estimated in zip(units, made, strict=True):
            family, separator, _ = self._names[unit.program].partition("/")
            for name, value in estimated.metrics.items():
                by_name.setdefault(family + separator + name, []).append(value)
            for name, value in metrics.items():
                by_name[family + separator + name] = [float(value)]
            if len(self._shards) > 1:
                own = {"meta_loss": estimated.metrics["meta_loss"], "seconds": estimated.seconds}
                by_name |= {f"shards/{unit.shard}/{x}": [y] for x, y in own.items()}
        self._latest |= {name: float(np.mean(values)) for name, values in by_name.items()}

    def _telling_of_compilation(self, bar: Any) -> contextlib.AbstractContextManager[None]:
        number = self._estimate.num_compiled + 1
        return progress.telling(bar, f"compiling program {number} of {len(self._names)}")

    def _tell(self, bar: Any, num_steps: int) -> None:
        steps_left = num_steps - self.step
        # The shards of a step that are not computed at once follow one another.
        rounds = -(-len(self._shards) // self.crew.parallel)
        left = self._estimate.remaining(steps_left * rounds)
        left_text = progress.remaining_text(left) if steps_left else ""
        told = [left_text, f"meta_loss={self.smoothed_loss:.4f}", self.crew.text()]
        bar.set_postfix_str(", ".join(filter(None, told)), refresh=False)

    def _summarise(self) -> None:
        for name, value in {**self._latest, **dict(self.crew.told())}.items():
            tf.summary.scalar(name, value, step=self._step)
        tf.summary.scalar("meta_loss_smoothed", self._smoothed_loss, step=self._step)
        tf.summary.scalar("seconds", self._seconds, step=self._step)
        tf.summary.scalar("compile_seconds", self.compile_seconds, step=self._step)
        self._latest.clear()

    @tf.function(jit_compile=True, autograph=False)
    def _apply(self, gradient: Tensors) -> Tensors:
        """Moves theta, and counts the outer step: dict of scalars for the summaries."""
        theta = self._theta_tensors()
        norm = tf.linalg.global_norm(list(gradient.values()))
        if self._gradient_norm_clip is not None:
            scale = tf.minimum(1.0, self._gradient_norm_clip / norm)
            gradient = {name: scale * g for name, g in gradient.items()}
        clip = self._gradient_clip
        gradient = {name: tf.clip_by_value(g, -clip, clip) for name, g in gradient.items()}
        self._optimizer.apply(
            [gradient[name] for name in self._trained],
            [self._theta[name] for name in self._trained],
        )
        self._step.assign_add(1)
        moved = [self._theta[name] - theta[name] for name in theta]
        return {"gradient_norm": norm, "outer_step_size": tf.linalg.global_norm(moved)}

    def _theta_tensors(self) -> Tensors:
        return {name: tf.convert_to_tensor(value) for name, value in self._theta.items()}


def _list_checkpoints(folder: str, newest: str) -> None:
    """Writes the list that the manager goes by, of which anything may be damaged or lost.

    It is a `CheckpointState` as text, with names relative to the folder.
    """
    matches = (re.fullmatch(r"(ckpt-\d+)\.index", name) for name in os.listdir(folder))
    names = [match.group(1) for match in matches if match]
    last = run_checkpoint.step_of(newest)
    kept = [name for name in names if run_checkpoint.step_of(name) <= last]
    kept.sort(key=run_checkpoint.step_of)
    times = [os.path.getmtime(os.path.join(folder, f"{name}.index")) for name in kept]
    lines = [f'model_checkpoint_path: "{os.path.basename(newest)}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in kept]
    lines += [f"all_model_checkpoint_timestamps: {time}" for time in times]
    # Without it, the manager takes all of these for ones to keep for ever.
    lines += ["last_preserved_timestamp: 0.0", ""]
    file = os.path.join(folder, "checkpoint")
    with files.whole(file) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write("\n".join(lines))
