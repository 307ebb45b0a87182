"""The pathwise estimator: gradients through the unroll."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from lopt_keras import gating
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Tensor, Tensors, Theta
from lopt_keras.validation import check_integer
from meta.estimators import base
from meta.inner import unroll
from meta.tasks.base import Task

_ZERO = tf.UnconnectedGradients.ZERO


class Pathwise(base.Estimator):
    """`mean_i grad l(theta + e_i)` over the particles, by reverse differentiation.

    Memory: reverse differentiation keeps all that the inner steps compute. With
    `segment_length` it keeps only the inner state at the start of each segment. It then
    computes the steps of one segment at a time once more. The square root of
    `unroll_length` is a good choice (measured in docs/gradients.md).

    A particle whose gradient is not finite is left out of the mean, and counted in
    the metric `excluded`, a fraction of all particles.

    Args:
        rule, task: as `base.Estimator`.
        segment_length: inner steps whose computation is kept at a time. Defaults to
            `unroll_length`. It changes the cost, not the gradient.
        **kwargs: as `base.Estimator`.

    Source: Metz et al., arXiv 1810.10180, section 2.2 (there "reparameterization").
    """

    def __init__(
        self, rule: UpdateRule, task: Task, segment_length: Tensor = None, **kwargs: Any
    ) -> None:
        super().__init__(rule, task, **kwargs)
        if segment_length is None:
            segment_length = self.unroll_length
        check_integer("segment_length", segment_length, low=1, high=self.unroll_length)
        self.segment_length = segment_length

    def combine(self, samples: base.Samples, memory: Any) -> tuple[Tensors, Any, dict[str, Tensor]]:
        usable = gating.gradients_are_usable(list(samples.gradients.values()))
        count = tf.maximum(tf.reduce_sum(tf.cast(usable, tf.float32)), 1.0)
        gradient = {
            name: tf.reduce_sum(gating.select(usable, g, tf.zeros_like(g)), axis=0) / count
            for name, g in samples.gradients.items()
        }
        excluded = 1.0 - tf.reduce_mean(tf.cast(usable, tf.float32))
        return gradient, memory, {"excluded": excluded}

    def measure(
        self,
        start: Callable[[Theta], unroll.InnerState],
        particles: Theta,
        seed: Tensor,
        num_steps: Any,
    ) -> base.Measurement:
        run = functools.partial(self._segment, seed, num_steps)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(particles)
            inner = start(particles)
        starts = self._forward(run, particles, inner, num_steps)
        measured, adjoint = self._backward(run, particles, starts, num_steps)
        of_start = tape.gradient(_floats(inner), particles, adjoint, _ZERO)
        gradients = {name: g + of_start[name] for name, g in measured.gradients.items()}
        return measured._replace(gradients=gradients)

    def _segment(
        self, seed: Tensor, num_steps: Any, particles: Theta, inner: Any, i: int
    ) -> Tensor:
        """Takes the steps of segment i: `(Trajectory, InnerState)`."""
        first = i * self.segment_length
        steps = tf.clip_by_value(num_steps - first, 0, self.segment_length)
        return self._run(particles, inner, seed, self.segment_length, first, steps)

    def _last_segment(self, num_steps: Any) -> Tensor:
        return (num_steps - 1) // self.segment_length

    def _forward(
        self, run: Callable[..., Any], particles: Theta, inner: Any, num_steps: Any
    ) -> Tensor:
        """The inner state before each segment: a nest of `tf.TensorArray`."""
        num_segments = 1 + self._last_segment(self.unroll_length)
        starts = tf.nest.map_structure(lambda x: _array(num_segments, x).write(0, x), inner)

        def body(i: int, inner: Any, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            _, inner = run(particles, inner, i)
            starts = tf.nest.map_structure(lambda a, x: a.write(i + 1, x), starts, inner)
            return i + 1, inner, starts

        if num_segments > 1:
            last = self._last_segment(num_steps)
            *_, starts = tf.while_loop(
                lambda i, *_: i < last, body, (tf.constant(0), inner, starts)
            )
        return starts

    def _backward(
        self, run: Callable[..., Any], particles: Theta, starts: Tensor, num_steps: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes the segments' steps again, the last first, and differentiates each.

        Returns:
            `Measurement`, and the adjoint: the gradient of the particles' losses in
            the floating-point tensors of the inner state at the start.
        """
        last = self._last_segment(num_steps)
        length = (1 + self._last_segment(self.unroll_length)) * self.segment_length
        weights = self.step_weights(num_steps, length)
        weights = tf.reshape(weights, (-1, self.segment_length))

        def body(
            i: int, end: Tensor, adjoint: Tensor, gradients: Tensors, trajectory: Any
        ) -> tuple[Tensor, Tensor, Tensor, Tensors, unroll.Trajectory]:
            theta = tf.nest.map_structure(tf.identity, particles)
            inner = tf.nest.map_structure(lambda a: a.read(i), starts)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch((theta, _floats(inner)))
                part, part_end = run(theta, inner, i)
            slopes = tf.cast(self.is_within_clip(part.outer_loss), tf.float32)
            slopes *= tf.gather(weights, i)[:, None]
            of_theta, adjoint = tape.gradient(
                (part.outer_loss, _floats(part_end)),
                (theta, _floats(inner)),
                (slopes, adjoint),
                _ZERO,
            )
            end = tf.nest.map_structure(lambda x, y: tf.where(i == last, x, y), part_end, end)
            gradients = {name: g + of_theta[name] for name, g in gradients.items()}
            written = [a.write(i, x) for a, x in zip(trajectory, part, strict=True)]
            return i - 1, end, adjoint, gradients, unroll.Trajectory(*written)

        end = tf.nest.map_structure(lambda a: a.read(last), starts)
        zeros = tf.nest.map_structure(tf.zeros_like, (_floats(end), particles))
        num_segments = 1 + self._last_segment(self.unroll_length)
        part = tf.zeros((self.segment_length, 2 * self.num_pairs))
        trajectory = unroll.Trajectory(
            *[_array(num_segments, part) for _ in unroll.Trajectory._fields]
        )
        _, end, adjoint, gradients, trajectory = tf.while_loop(
            lambda i, *_: i >= 0, body, (last, end, *zeros, trajectory)
        )
        stacked = [tf.reshape(a.stack(), (-1, 2 * self.num_pairs)) for a in trajectory]
        measured = base.Measurement(unroll.Trajectory(*stacked), end, gradients)
        return measured, adjoint


def _floats(nest: Tensor) -> list[Tensor]:
    """The floating-point tensors of a nest: what has a gradient."""
    return [x for x in tf.nest.flatten(nest) if x.dtype.is_floating]


def _array(size: Tensor, like: Tensor) -> Tensor:
    """An empty `tf.TensorArray` for tensors like this one."""
    return tf.TensorArray(like.dtype, size, element_shape=like.shape, clear_after_read=False)
