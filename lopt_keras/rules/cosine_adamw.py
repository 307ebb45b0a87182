"""AdamW with a schedule as an update rule."""

import dataclasses

import numpy as np
from keras import ops

from lopt_keras import validation
from lopt_keras.rules import hand_designed


@dataclasses.dataclass(frozen=True)
class CosineAdamW(hand_designed.AdamW):
    """AdamW with a linear warm-up and a cosine decay to zero over the planned steps.

    As `keras.optimizers.AdamW` with `keras.optimizers.schedules.CosineDecay` from
    zero. Where the number of steps is not known, it is `AdamW`.

    Theta: that of `AdamW`.

    Args:
        learning_rate: the highest, at the end of the warm-up.
        beta_1, beta_2, epsilon, weight_decay: as `AdamW`.
        warmup: fraction of the steps, in [0, 1).

    Reference:
        Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """

    signals = ("total_steps",)

    warmup: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        validation.check_number("warmup", self.warmup, high=1.0)

    def update_tensor(self, theta, state, message, grad, param, signals):
        update, state = super().update_tensor(theta, state, message, grad, param, signals)
        factor = ops.reshape(self._factor(signals), (-1, *(1,) * (len(param.shape) - 1)))
        # The weight decay is in proportion to the learning rate too.
        return factor * update, state

    def _factor(self, signals):
        """Of the learning rate: `[P]`."""
        step = ops.cast(signals.step, "float32")
        known = signals.total_steps.known
        total = ops.where(known, signals.total_steps.value, 1.0)
        warmup = ops.floor(self.warmup * total)
        rise = step / ops.maximum(warmup, 1.0)
        fraction = ops.clip((step - warmup) / ops.maximum(total - warmup, 1.0), 0.0, 1.0)
        fall = 0.5 * (1.0 + ops.cos(np.float32(np.pi) * fraction))
        return ops.where(known, ops.where(step < warmup, rise, fall), 1.0)
