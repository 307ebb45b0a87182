"""What the estimators of the meta-gradient share: particles and their losses."""

import abc
from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras.rules.base import check_integer, check_number
from meta import random

OUTER_SPLITS = ("train", "validation")


class Estimate(NamedTuple):
    """One estimate of the meta-gradient.

    Attributes:
        gradient: dict as theta; of the smoothed outer loss
            `E_{e ~ N(0, stddev^2 I)} loss(theta + e)`.
        worker: the estimator's state for the next call.
        metrics: dict of scalars for the summaries.
    """

    gradient: Any
    worker: Any
    metrics: Any


class Estimator(abc.ABC):
    """An estimator of the gradient of the smoothed outer loss.

    Pure functions on tensors, to be called inside a `tf.function(jit_compile=True)`.

    Args:
        rule: the `UpdateRule` whose theta is meta-trained.
        task: the `Task` that it is meta-trained on.
        num_particles: copies of theta that run side by side, an even number: they
            are antithetic pairs, and a pair works on one problem.
        stddev: standard deviation of the perturbations of theta.
        unroll_length: inner steps for each estimate.
        outer_split: "train" or "validation", on which the outer loss is measured.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(
        self, rule, task, num_particles=16, stddev=0.01, unroll_length=100, outer_split="train"
    ):
        check_integer("num_particles", num_particles, low=2)
        if num_particles % 2:
            raise ValueError(
                "`num_particles` must be even, as particles are antithetic pairs. "
                f"Received: num_particles={num_particles}"
            )
        check_number("stddev", stddev, low_open=True)
        check_integer("unroll_length", unroll_length, low=1)
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
        self.outer_split = outer_split

    @abc.abstractmethod
    def init_worker(self, theta, seed):
        """The state before the first estimate: a nest of tensors, maybe empty."""

    @abc.abstractmethod
    def estimate(self, theta, worker, seed):
        """An `Estimate` from theta (a dict of tensors), the worker and a seed `[2]`."""

    def perturbations(self, theta, seed):
        """Normal perturbations of theta, one for each pair: dict of `[num_pairs, ...]`."""
        return {
            name: self.stddev
            * random.normal((self.num_pairs, *value.shape), random.fold_in(seed, i))
            for i, (name, value) in enumerate(sorted(theta.items()))
        }

    def correlate(self, directions, losses):
        """The antithetic ES estimate `mean_i (l_i+ - l_i-) x_i / (2 stddev^2)`.

        Args:
            directions: dict of `[num_pairs, ...]`, the x_i.
            losses: `[2 * num_pairs]`, first those of all theta + e_i, then theta - e_i.
        """
        weights = (losses[: self.num_pairs] - losses[self.num_pairs :]) / (2 * self.stddev**2)
        return {
            name: tf.tensordot(weights, x, axes=1) / self.num_pairs
            for name, x in directions.items()
        }

    def outer_losses(self, trajectory):
        """The mean outer loss of each particle, clipped, and whether it diverged.

        Returns:
            `[P]` float32 and `[P]` bool.
        """
        clip = self.task.loss_clip
        losses = trajectory.outer_loss
        finite = tf.math.is_finite(losses)
        diverged = tf.reduce_any(~finite | (tf.abs(losses) > clip), axis=0)
        clipped = tf.clip_by_value(tf.where(finite, losses, clip), -clip, clip)
        return tf.reduce_mean(clipped, axis=0), diverged

    def metrics(self, trajectory, losses, diverged):
        """The summaries that every estimator gives."""
        steps = trajectory.step_size
        steps = tf.where(tf.math.is_finite(steps), steps, 0.0)
        return {
            "meta_loss": tf.reduce_mean(losses),
            "diverged": tf.reduce_mean(tf.cast(diverged, tf.float32)),
            "inner_step_size": tf.reduce_mean(steps),
        }


def antithetic(theta, perturbations):
    """theta + e_i for all i, then theta - e_i for all i: dict of `[2 * num_pairs, ...]`."""
    return {
        name: tf.concat([value + perturbations[name], value - perturbations[name]], axis=0)
        for name, value in theta.items()
    }
