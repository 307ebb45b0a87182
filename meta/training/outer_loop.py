"""The outer loop: meta-gradients into theta, checkpoints, summaries, progress."""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from export import backend
from export import checkpoint as run_checkpoint
from lopt_keras.types import Arrays, Tensor, Tensors, Theta
from meta import files, progress, random
from meta.estimators.base import Estimator
from meta.training import outer_state
from meta.training.curriculum import Curriculum

_SMOOTHING = 0.98
_SUMMARY_EVERY = 10
_KEPT_CHECKPOINTS = 3


class OuterLoop:
    """Meta-trains theta, and can be killed and resumed at any moment.

    All randomness of outer step k comes from (seed, k), and all else that a step
    depends on is in the checkpoint: a resumed run ends with the same theta, bit
    for bit, as one that was never interrupted.

    Args:
        estimators: an `Estimator`, or a dict from name to `(Estimator, weight)` of several
            that share rule and horizon, each with its own tasks. Each outer step uses one of
            them, drawn in proportion to the weights. The part of a name before a "/" is a
            family of tasks, which has its own summaries.
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
    ) -> None:
        if not isinstance(estimators, Mapping):
            estimators = {"": (estimators, 1.0)}
        self._names = list(estimators)
        self._estimators = [estimator for estimator, _ in estimators.values()]
        self._ends = np.cumsum([weight for _, weight in estimators.values()])
        estimator = self._estimators[0]
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
        self._curriculum = curriculum
        self._out_dir = out_dir
        self._seed_value = seed
        self._seed = random.seed(seed)
        self._estimate = progress.Estimate([weight for _, weight in estimators.values()])
        self._latest: dict[str, Tensor] = {}
        theta = estimator.rule.init_theta(seed) if initial_theta is None else initial_theta
        self._theta = {
            name: keras.Variable(value, name=name)
            for name, value in estimator.rule.check_theta(theta).items()
        }
        self._trained = [name for name in self._theta if name in estimator.trained]
        outer_optimizer.build([self._theta[name] for name in self._trained])
        self._states = [
            tf.nest.map_structure(tf.Variable, self._init_state(self._theta_tensors(), i))
            for i in range(len(self._estimators))
        ]
        self._step = tf.Variable(0, dtype=tf.int64)
        self._smoothed_loss = tf.Variable(np.nan)
        self._seconds = tf.Variable(0.0)
        self._compile_seconds = tf.Variable(0.0)
        self._trace_seconds = self._trace()
        self._checkpoint = tf.train.Checkpoint(
            theta={name: variable.value for name, variable in self._theta.items()},
            optimizer=[variable.value for variable in outer_optimizer.variables],
            # Called so in the checkpoints of runs that go on.
            workers=[tf.nest.flatten(state) for state in self._states],
            step=self._step,
            smoothed_loss=self._smoothed_loss,
            seconds=self._seconds,
            compile_seconds=self._compile_seconds,
        )
        self._checkpoints: Any = None

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
        return float(self._compile_seconds) + self._trace_seconds

    def restore(self) -> int:
        """Continues from the newest whole checkpoint in `out_dir`, if there is any.

        Returns:
            The outer step at which it stands.

        Raises:
            ValueError: if there are checkpoints, but none that is whole and of such a loop.
        """
        folder = os.path.join(self._out_dir, run_checkpoint.CHECKPOINTS)
        newest = run_checkpoint.newest_whole(self._out_dir)
        if newest is not None:
            try:
                self._checkpoint.restore(newest).assert_consumed()
            except (AssertionError, tf.errors.OpError, ValueError) as error:
                raise ValueError(
                    f"The checkpoint {newest!r} is not one of this meta-training, or of another "
                    f"version: {backend.reason(error)}"
                ) from error
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
            while self.step < num_steps:
                self._step_and_record(bar)
                if self.step % _SUMMARY_EVERY == 0 or self.step == num_steps:
                    self._tell(bar, num_steps)
                if self.step % self._checkpoint_every == 0 or self.step == num_steps:
                    with self._writing(f"checkpoint of outer step {self.step}"):
                        self._checkpoints.save(checkpoint_number=self.step)
                        self._write_outer_state()
            with self._writing("summaries"):
                writer.flush()

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

    def _trace(self) -> float:
        """Traces the programs, always in one order and before anything is restored: seconds.

        TensorFlow numbers functions as it traces them, and a cache of compiled programs knows
        them by these names: traced as the steps come, a resumed run would find none of them.
        """
        start, num = time.perf_counter(), len(self._estimators)
        for i in tqdm.trange(num, desc="tracing", unit="program", leave=False):
            self._outer_step.get_concrete_function(i)
        return time.perf_counter() - start

    def _step_and_record(self, bar: Any) -> None:
        index, start = self._choose(), time.perf_counter()
        is_new = not self._estimate.is_compiled(index)
        with self._telling_of_compilation(bar) if is_new else contextlib.nullcontext():
            metrics = self._outer_step(index)
            loss = float(metrics["meta_loss"])
        elapsed = time.perf_counter() - start
        spent = self._compile_seconds if is_new else self._seconds
        spent.assign_add(elapsed)
        self._estimate.record(index, elapsed)
        previous = self.smoothed_loss if self.step > 1 else loss
        # A short memory at first, so that the first losses do not linger.
        weight = max(1 - _SMOOTHING, 1 / self.step)
        self._smoothed_loss.assign((1 - weight) * previous + weight * loss)
        family, separator, _ = self._names[index].partition("/")
        self._latest |= {family + separator + name: value for name, value in metrics.items()}
        bar.update()
        if self.step % _SUMMARY_EVERY == 0:
            with self._writing("summaries"):
                self._summarise()

    def _telling_of_compilation(self, bar: Any) -> contextlib.AbstractContextManager[None]:
        number = self._estimate.num_compiled + 1
        return progress.telling(bar, f"compiling program {number} of {len(self._estimators)}")

    def _tell(self, bar: Any, num_steps: int) -> None:
        steps_left = num_steps - self.step
        left = progress.remaining_text(self._estimate.remaining(steps_left)) if steps_left else ""
        told = [left, f"meta_loss={self.smoothed_loss:.4f}"]
        bar.set_postfix_str(", ".join(filter(None, told)), refresh=False)

    def _summarise(self) -> None:
        for name, value in self._latest.items():
            tf.summary.scalar(name, value, step=self._step)
        tf.summary.scalar("meta_loss_smoothed", self._smoothed_loss, step=self._step)
        tf.summary.scalar("seconds", self._seconds, step=self._step)
        tf.summary.scalar("compile_seconds", self.compile_seconds, step=self._step)
        self._latest.clear()

    def _choose(self) -> int:
        """Which estimator the next outer step is of."""
        drawn = np.random.default_rng([self._seed_value, self.step]).random() * self._ends[-1]
        return int(np.searchsorted(self._ends, drawn, side="right"))

    @tf.function(autograph=False)
    def _init_state(self, theta: Theta, index: int) -> Any:
        # Not compiled: it runs once.
        seed = random.fold_in(random.fold_in(self._seed, 0), index)
        length = self._length(tf.constant(0, tf.int64))
        return self._estimators[index].init_state(theta, seed, length)

    @tf.function(jit_compile=True, autograph=False)
    def _outer_step(self, index: int) -> Tensors:
        theta = self._theta_tensors()
        seed = random.fold_in(random.fold_in(self._seed, 1), self._step)
        state = tf.nest.map_structure(tf.convert_to_tensor, self._states[index])
        length = self._length(self._step)
        estimate = self._estimators[index].estimate(theta, state, seed, length)
        gradient = {
            name: tf.where(tf.math.is_finite(g), g, 0.0)
            for name, g in estimate.gradient.items()
            if name in self._trained
        }
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
        for variable, value in zip(
            tf.nest.flatten(self._states[index]), tf.nest.flatten(estimate.state), strict=True
        ):
            variable.assign(value)
        self._step.assign_add(1)
        moved = [self._theta[name] - theta[name] for name in theta]
        return {
            **estimate.metrics,
            "unroll_length": tf.cast(length, tf.float32),
            "gradient_norm": norm,
            "outer_step_size": tf.linalg.global_norm(moved),
        }

    def _length(self, step: Tensor) -> Any:
        """Inner steps of the problems that begin at this outer step."""
        seed = random.fold_in(random.fold_in(self._seed, 2), step)
        return self._curriculum.length(step, seed)

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
