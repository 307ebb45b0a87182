"""Which particles a step counts for.

Particles are copies of one optimizer that run side by side; every array has a leading axis of
them, and the Keras optimizer has one.
"""

from collections.abc import Sequence

from keras import ops

from lopt_keras import reductions
from lopt_keras.types import Tensor


def gradients_are_usable(gradients: Sequence[Tensor]) -> Tensor:
    """Whether all gradients are finite, with squares that float32 can sum.

    The rules accumulate squared gradients. A square that overflows would spoil the state
    for ever, as a NaN would.

    Args:
        gradients: list of `[P, *shape]`.

    Returns:
        `[P]` booleans.
    """
    usable = None
    for gradient in gradients:
        axes = tuple(range(1, len(gradient.shape)))
        finite = ops.isfinite(ops.reshape(reductions.total(ops.square(gradient), axes), (-1,)))
        usable = finite if usable is None else ops.logical_and(usable, finite)
    return usable


def select(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the particles in which `condition` holds, `old` for the others.

    Args:
        condition: `[P]` booleans.
        new, old: `[P, ...]`.
    """
    rank = len(new.shape)
    return ops.where(ops.reshape(condition, (-1, *(1,) * (rank - 1))), new, old)
