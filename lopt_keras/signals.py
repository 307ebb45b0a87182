"""What an update rule knows besides gradients and parameters."""

from typing import Any, NamedTuple, Self

from keras import ops

from lopt_keras.types import Tensor


class Signal(NamedTuple):
    """A number that is not always known.

    Attributes:
        value: `[P]` float32, finite; 0 where it is not known.
        known: `[P]` booleans.
    """

    value: Tensor
    known: Tensor

    @classmethod
    def where(cls, known: Tensor, value: Tensor) -> Self:
        """A value that is known where a condition holds and it is finite."""
        known = ops.logical_and(known, ops.isfinite(value))
        return cls(ops.where(known, value, 0.0), known)


class Signals(NamedTuple):
    """What an update rule hears besides gradients and parameters.

    Attributes:
        step: `[P]` integers, steps taken so far, counted from 0.
        total_steps: `Signal`, the planned number of steps. Not known any more when that
            many have been taken: training beyond a horizon is training without one.
        train_loss: `Signal`, the loss that the gradients are of.
        validation_loss: `Signal`, a loss on held-out data measured since the last step.
    """

    step: Tensor
    total_steps: Signal
    train_loss: Signal
    validation_loss: Signal

    @classmethod
    def silent(cls, step: Tensor, **heard: Any) -> Self:
        """Signals of which only the step, and what is given, is known.

        Args:
            step: `[P]` integers.
            **heard: `Signal`s, or `[P]` float32, known where they are finite.
        """
        zeros, nowhere = ops.zeros(ops.shape(step), "float32"), ops.zeros(ops.shape(step), "bool")
        signals = {name: Signal(zeros, nowhere) for name in cls._fields[1:]}
        for name, x in heard.items():
            signals[name] = x if isinstance(x, Signal) else Signal.where(True, x)
        total, known = signals["total_steps"]
        ahead = ops.cast(step, "float32") < total
        signals["total_steps"] = Signal.where(ops.logical_and(known, ahead), total)
        return cls(step, **signals)
