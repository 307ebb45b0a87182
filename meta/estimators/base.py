"""What the estimators of the meta-gradient share: particles, their problems and losses."""

import abc
import copy
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras import fusion, gating
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Tensor, Tensors, Theta
from lopt_keras.validation import check_integer, check_number
from meta import random
from meta.inner import unroll
from meta.tasks.base import Task

OUTER_SPLITS = ("train", "validation")


class Estimate(NamedTuple):
    """One estimate of the meta-gradient.

    Attributes:
        gradient: dict as theta; of the smoothed outer loss
            `E_{e ~ N(0, stddev^2 I)} loss(theta + e)`.
        state: the estimator's state for the next call.
        metrics: dict of scalars for the summaries.
    """

    gradient: Tensors
    state: "EstimatorState"
    metrics: Tensors


class Problems(NamedTuple):
    """Where the inner problems are that continue across estimates.

    Attributes:
        inner: `unroll.InnerState` of P particles.
        remaining: `[num_pairs]` int32, inner steps until the pair begins a new
            problem; it begins one with the next estimate where this is not positive.
    """

    inner: unroll.InnerState
    remaining: Tensor


class EstimatorState(NamedTuple):
    """What an estimator carries from one estimate to the next.

    Attributes:
        problems: `Problems`, or `()` where every estimate begins new ones.
        memory: the estimator's own, a nest of tensors, maybe empty.
    """

    problems: Problems | tuple[()]
    memory: Any


class Measurement(NamedTuple):
    """The inner steps of one estimate.

    Attributes:
        trajectory: `unroll.Trajectory`, zero after the last step.
        inner: `unroll.InnerState` at the end.
        gradients: dict of `[P, ...]`, the gradient of each particle's clipped mean
            outer loss in its own theta, or `()` if it was not asked for.
    """

    trajectory: unroll.Trajectory
    inner: unroll.InnerState
    gradients: Any = ()


class Samples(NamedTuple):
    """What an estimate is made of.

    Attributes:
        perturbations: dict of `[num_pairs, ...]`, the e_i.
        begins: `[num_pairs]` bool, whether the pair's problem began here.
        losses: `[P]`, the clipped mean outer loss, first of all theta + e_i, then
            of theta - e_i.
        gradients: as in `Measurement`.
    """

    perturbations: Tensors
    begins: Tensor
    losses: Tensor
    gradients: Any


class Estimator(abc.ABC):
    """An estimator of the gradient of the smoothed outer loss.

    Its methods are pure functions on tensors. Call them inside a
    `tf.function(jit_compile=True)`.

    If `horizon` is longer than `unroll_length`, the inner problems continue from one
    estimate to the next, and each estimate sees a segment of `unroll_length` steps. A pair
    begins a new problem at the horizon, or when one of its halves has diverged. The pairs
    start staggered, so that at any time they are at different points of their problems.
    The gradient is then truncated, except with `PES` and `NRES`: it does not see how theta
    has changed the state that a segment starts from.

    Args:
        rule: the `UpdateRule` whose theta is meta-trained.
        task: the `Task` that it is meta-trained on.
        num_particles: copies of theta that run side by side, an even number: they
            are antithetic pairs, and a pair works on one problem.
        stddev: standard deviation of the perturbations of theta.
        unroll_length: inner steps for each estimate.
        horizon: inner steps of a whole problem, a multiple of `unroll_length`.
            Defaults to `unroll_length`: every estimate begins new problems.
        outer_split: "train" or "validation", on which the outer loss is measured.
        outer_tail: the outer loss is the mean over this fraction of a problem's steps, its
            last ones, in (0, 1]; less than 1 only where each estimate takes whole
            problems. The mean over all steps rewards speed, a short tail what is reached.
        horizon_known: the fraction of problems whose number of steps the rule knows. In the
            others it must work as for a user who does not give it.
        validation_known: the fraction of problems in which the rule receives validation
            losses, if it uses them.
        trained: names of the entries of theta that are perturbed and have a gradient;
            defaults to all. To train a part, as Celo trains a rule first and then its
            schedule (Moudgil et al., arXiv 2501.12670).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(
        self,
        rule: UpdateRule,
        task: Task,
        num_particles: int = 16,
        stddev: float = 0.01,
        unroll_length: int = 100,
        horizon: int | None = None,
        outer_split: str = "train",
        outer_tail: float = 1.0,
        horizon_known: float = 1.0,
        validation_known: Any = 1.0,
        trained: Collection[str] | None = None,
    ) -> None:
        check_integer("num_particles", num_particles, low=2)
        if num_particles % 2:
            raise ValueError(
                "`num_particles` must be even, as particles are antithetic pairs. "
                f"Received: num_particles={num_particles}"
            )
        check_number("stddev", stddev, low_open=True)
        check_integer("unroll_length", unroll_length, low=1)
        horizon = unroll_length if horizon is None else horizon
        check_integer("horizon", horizon, low=1)
        if horizon % unroll_length:
            raise ValueError(
                f"`horizon` must be a multiple of unroll_length={unroll_length}. "
                f"Received: horizon={horizon}"
            )
        if outer_split not in OUTER_SPLITS:
            raise ValueError(
                f"`outer_split` must be one of {OUTER_SPLITS}. "
                f"Received: outer_split={outer_split!r}"
            )
        self.rule = rule
        self.task = task
        self.num_pairs = num_particles // 2
        self.stddev = stddev
        self.unroll_length = unroll_length
        self.horizon = horizon
        check_number("outer_tail", outer_tail, low_open=True)
        if outer_tail > 1 or (outer_tail < 1 and horizon > unroll_length):
            raise ValueError(
                "`outer_tail` must be in (0, 1], and 1 where horizon > unroll_length. Received: "
                f"outer_tail={outer_tail}, horizon={horizon}, unroll_length={unroll_length}"
            )
        for name, fraction in (
            ("horizon_known", horizon_known),
            ("validation_known", validation_known),
        ):
            check_number(name, fraction)
            if fraction > 1:
                raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={fraction}")
        known = rule.theta_shapes()
        trained = frozenset(known if trained is None else trained)
        if not trained or not trained <= set(known):
            raise ValueError(
                f"`trained` must name entries of theta, some of {sorted(known)}. "
                f"Received: trained={sorted(trained)}"
            )
        self.outer_split = outer_split
        self.outer_tail = outer_tail
        self.horizon_known = horizon_known
        self.validation_known = validation_known
        self.trained = trained

    def with_stddev(self, stddev: Any) -> "Estimator":
        """The same estimator with other perturbations.

        Args:
            stddev: a number, or a scalar tensor.
        """
        other = copy.copy(self)
        other.stddev = stddev
        return other

    def init_state(self, theta: Theta, seed: Tensor, length: Any = None) -> EstimatorState:
        """The `EstimatorState` before the first estimate.

        Args:
            theta: dict of tensors.
            seed: `[2]` int32.
            length: scalar int32 tensor, the inner steps of the first problems.
                Defaults to `horizon`.
        """
        memory = self.init_memory(theta, random.fold_in(seed, 4))
        return EstimatorState(self._first_problems(theta, seed, length), memory)

    def estimate(
        self, theta: Theta, state: EstimatorState, seed: Tensor, length: Any = None
    ) -> Estimate:
        """An `Estimate`.

        Args:
            theta: dict of tensors.
            state: `EstimatorState`.
            seed: `[2]` int32.
            length: scalar int32 tensor, at most `horizon`: the inner steps of the
                problems that begin now. Defaults to `horizon`. Problems that continue
                across estimates end with the segment in which they reach it.
        """
        length = self.horizon if length is None else length
        problems = state.problems
        begins = tf.ones(self.num_pairs, tf.bool) if not problems else problems.remaining <= 0
        seeds = random.split(seed, 3)
        e = self.perturb(theta, seeds[0], begins, state.memory)
        start = functools.partial(self._start, problems, begins, seeds[1], length)
        num_steps = self.unroll_length if problems else length
        measured = self.measure(start, antithetic(theta, e), seeds[2], num_steps)
        losses, diverged = self.outer_losses(measured.trajectory, num_steps)
        samples = Samples(e, begins, losses, measured.gradients)
        gradient, memory, metrics = self.combine(samples, state.memory)
        if problems:
            remaining = tf.where(begins, length, problems.remaining) - self.unroll_length
            pair_diverged = diverged[: self.num_pairs] | diverged[self.num_pairs :]
            problems = Problems(measured.inner, tf.where(pair_diverged, 0, remaining))
        metrics |= _summaries(measured.trajectory, losses, diverged, num_steps)
        return Estimate(gradient, EstimatorState(problems, memory), metrics)

    def init_memory(self, theta: Theta, seed: Tensor) -> Any:
        """The estimator's own part of the `EstimatorState`, before the first estimate."""
        return ()

    def perturb(self, theta: Theta, seed: Tensor, begins: Tensor, memory: Any) -> Tensors:
        """The perturbations of this estimate: dict of `[num_pairs, ...]`.

        Args:
            theta: dict of tensors.
            seed: `[2]` int32.
            begins: `[num_pairs]` bool, whether the pair begins a new problem.
            memory: the estimator's own.
        """
        return self.perturbations(theta, seed)

    @abc.abstractmethod
    def combine(self, samples: Samples, memory: Any) -> tuple[Tensors, Any, dict[str, Tensor]]:
        """`(gradient, memory, metrics)` from `Samples` and the memory so far."""

    def measure(
        self,
        start: Callable[[Theta], unroll.InnerState],
        particles: Theta,
        seed: Tensor,
        num_steps: Any,
    ) -> Measurement:
        """Takes the inner steps of one estimate.

        Args:
            start: function from particles to `unroll.InnerState`.
            particles: dict of `[P, ...]`.
            seed: `[2]` int32.
            num_steps: scalar int32 tensor or int, at most `unroll_length`.

        Returns:
            `Measurement`.
        """
        inner = start(particles)
        steps = (self.unroll_length, 0, num_steps)
        with fusion.scope():
            return Measurement(*self._run(particles, inner, seed, *steps))

    def perturbations(self, theta: Theta, seed: Tensor) -> Tensors:
        """Normal perturbations of theta, one for each pair: dict of `[num_pairs, ...]`.

        Zero where theta is not trained.
        """
        names = sorted(theta)
        shapes = [(self.num_pairs, *theta[name].shape) for name in names]
        drawn = random.normals(shapes, random.split(seed, len(names)))
        return {
            name: self.stddev * noise if name in self.trained else tf.zeros_like(noise)
            for name, noise in zip(names, drawn, strict=True)
        }

    def step_weights(self, num_steps: Any, length: int) -> Tensor:
        """The weight of each step in the outer loss: `[length]`, with sum 1.

        Args:
            num_steps: number of steps that are taken.
            length: Python int, entries of the trajectory, at least `unroll_length`.
        """
        num_steps = tf.cast(num_steps, tf.float32)
        count = tf.maximum(tf.math.ceil(self.outer_tail * num_steps), 1.0)
        step = tf.range(length, dtype=tf.float32)
        counted = (step >= num_steps - count) & (step < num_steps)
        return tf.cast(counted, tf.float32) / count

    def score_samples(self, directions: Tensors, losses: Tensor) -> Tensors:
        """The ES estimate of each pair, `(l_i+ - l_i-) x_i / (2 stddev^2)`.

        Args:
            directions: dict of `[num_pairs, ...]`, the x_i.
            losses: `[P]`, as in `Samples`.

        Returns:
            Dict of `[num_pairs, ...]`.
        """
        weights = (losses[: self.num_pairs] - losses[self.num_pairs :]) / (2 * self.stddev**2)
        return {
            name: tf.reshape(weights, (-1, *(1,) * (x.shape.rank - 1))) * x
            for name, x in directions.items()
        }

    def outer_losses(self, trajectory: Any, num_steps: Any) -> tuple[Tensor, Tensor]:
        """The mean outer loss of each particle, clipped, and whether it diverged.

        Args:
            trajectory: `unroll.Trajectory`, zero after the last step.
            num_steps: number of steps.

        Returns:
            `[P]` float32 and `[P]` bool.
        """
        clip, losses = self.task.loss_clip, trajectory.outer_loss
        within = self.is_within_clip(losses)
        clipped = tf.minimum(tf.where(tf.math.is_finite(losses), losses, clip), clip)
        weights = self.step_weights(num_steps, losses.shape[0])
        mean = tf.reduce_sum(weights[:, None] * clipped, axis=0)
        return mean, tf.reduce_any(~within, axis=0)

    def is_within_clip(self, losses: Tensor) -> Tensor:
        """Where outer losses are finite and not clipped."""
        return tf.math.is_finite(losses) & (losses <= self.task.loss_clip)

    def _run(
        self, particles: Theta, inner: Any, seed: Tensor, length: Any, first: Any, num_steps: Any
    ) -> tuple[unroll.Trajectory, unroll.InnerState]:
        """`unroll.run` on this estimator's rule, task and split."""
        return unroll.run(
            self.rule,
            self.task,
            particles,
            inner,
            seed,
            length,
            self.num_pairs,
            self.outer_split,
            first,
            num_steps,
        )

    def _begin(self, particles: Theta, seed: Tensor, length: Any) -> unroll.InnerState:
        # What comes after the seeds of `unroll.begin`.
        *_, own, other = random.split(seed, 4)
        drawn = random.uniforms([(self.num_pairs,)] * 2, [own, other])
        is_known, hears = drawn[0] < self.horizon_known, drawn[1] < self.validation_known
        total_steps = tf.where(is_known, tf.cast(length, tf.float32), 0.0)
        signals = (tf.concat([x, x], axis=0) for x in (total_steps, hears))
        return unroll.begin(self.rule, self.task, particles, seed, self.num_pairs, *signals)

    def _start(
        self, problems: Any, begins: Tensor, seed: Tensor, length: Any, particles: Theta
    ) -> unroll.InnerState:
        """The `unroll.InnerState` of all particles before the estimate's first step."""
        fresh = self._begin(particles, seed, length)
        if not problems:
            return fresh
        renew = functools.partial(gating.select, tf.concat([begins, begins], axis=0))
        return tf.nest.map_structure(renew, fresh, problems.inner)

    def _first_problems(self, theta: Theta, seed: Tensor, length: Any) -> Any:
        if self.horizon == self.unroll_length:
            return ()
        copies = {name: tf.stack([x] * (2 * self.num_pairs)) for name, x in theta.items()}
        length = self.horizon if length is None else length
        age = tf.range(self.num_pairs) * (length // self.unroll_length) // self.num_pairs
        return Problems(self._begin(copies, seed, length), length - age * self.unroll_length)


def antithetic(theta: Theta, perturbations: Tensors) -> Tensors:
    """theta + e_i for all i, then theta - e_i for all i: dict of `[2 * num_pairs, ...]`."""
    return {
        name: tf.concat([value + perturbations[name], value - perturbations[name]], axis=0)
        for name, value in theta.items()
    }


def mean(samples: Tensors) -> Tensors:
    """Over the leading axis, which counts samples: dict of `[...]` from dict of `[N, ...]`."""
    return {name: tf.reduce_mean(x, axis=0) for name, x in samples.items()}


def _summaries(trajectory: Any, losses: Tensor, diverged: Tensor, num_steps: Any) -> Tensors:
    """The metrics that every estimator gives."""
    steps = trajectory.step_size
    steps = tf.where(tf.math.is_finite(steps), steps, 0.0)
    num_steps = tf.cast(num_steps, tf.float32)
    return {
        "meta_loss": tf.reduce_mean(losses),
        "diverged": tf.reduce_mean(tf.cast(diverged, tf.float32)),
        "inner_step_size": tf.reduce_mean(tf.reduce_sum(steps, axis=0)) / num_steps,
    }
