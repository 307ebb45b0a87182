"""How long inner problems are in the course of meta-training."""

import dataclasses

import tensorflow as tf
from lopt_keras.validation import check_integer

from meta import random

SCHEDULES = ("constant", "linear", "exponential", "log_uniform")


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The inner steps of the problems that begin at an outer step.

    A pure function of the outer step and a seed, evaluated inside the compiled outer
    step: whatever the lengths, there is one program, and a resumed run draws the
    same ones.

    Args:
        schedule: "constant", always `longest`; "linear" or "exponential", from
            `shortest` at outer step 0 to `longest` at outer step `num_steps` and from
            there on; or "log_uniform", drawn between the two at every outer step.
        longest: inner steps.
        shortest: inner steps, at most `longest`; not for "constant".
        num_steps: outer steps; for "linear" and "exponential" only.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    schedule: str
    longest: int
    shortest: int | None = None
    num_steps: int | None = None

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"`schedule` must be one of {SCHEDULES}. Received: schedule={self.schedule!r}"
            )
        check_integer("longest", self.longest, low=1)
        self._check("shortest", ("linear", "exponential", "log_uniform"), high=self.longest)
        self._check("num_steps", ("linear", "exponential"))

    def _check(self, name, schedules, **bounds):
        """Raises unless the argument is there just where the schedule reads it."""
        value = getattr(self, name)
        if self.schedule in schedules:
            check_integer(name, value, low=1, **bounds)
        elif value is not None:
            raise ValueError(
                f"`{name}` is for the schedules {schedules} only. "
                f"Received: {name}={value!r} with schedule={self.schedule!r}"
            )

    def length(self, step, seed):
        """Inner steps at an outer step.

        Args:
            step: scalar integer tensor, outer steps taken so far.
            seed: `[2]` int32, of this outer step.

        Returns:
            Scalar int32 tensor; for "constant" the Python int, with which a program
            has loops of known length.
        """
        if self.schedule == "constant":
            return self.longest
        if self.schedule == "log_uniform":
            fraction = random.uniform((), seed)
        else:
            fraction = tf.minimum(tf.cast(step, tf.float32) / self.num_steps, 1.0)
        if self.schedule == "linear":
            length = self.shortest + fraction * (self.longest - self.shortest)
        else:
            length = self.shortest * (self.longest / self.shortest) ** fraction
        return tf.cast(tf.round(length), tf.int32)
