"""What the learned rules read: accumulators, factored second moments, time.

Shapes are written with `P` particles (copies of one optimizer that run side by
side; the Keras optimizer has P = 1), `F` features and a tensor's own `*shape`.
Features come before the tensor's dimensions, so that each is a contiguous plane.
"""

import numpy as np
from keras import ops

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""The `c` of `time_embedding` (Metz et al., arXiv 1810.10180, appendix)."""


def broadcast_over(values, rank):
    """`[P, F]` -> `[P, F, 1, ..., 1]`, against features of a rank-`rank` tensor."""
    return ops.reshape(values, (*values.shape, *(1,) * rank))


def accumulate(accumulator, value, decay):
    """`a <- b a + (1 - b) x`, without bias correction."""
    return decay * accumulator + (1.0 - decay) * value


def time_embedding(step):
    """`tanh(t / c - 1)` for each c of `TIMESCALES`.

    Args:
        step: `[P]`, steps taken so far, counted from 0.

    Returns:
        `[P, 11]` float32.

    Source: Metz et al., arXiv 1810.10180, appendix.
    """
    step = ops.cast(step, "float32")[:, None]
    return ops.tanh(step / np.asarray(TIMESCALES, "float32") - 1.0)


def decays_from_offsets(initial_decays, offsets):
    """Learned decays `1 - exp(10 (log(1 - b0) / 10 + offset))`.

    Args:
        initial_decays: the K values of b0, in [0, 1).
        offsets: `[P, K]` meta-parameters; zero gives b0.

    Returns:
        `[P, K]`.

    Source: Metz et al., arXiv 2203.11860, the published implementation.
    """
    # In float32 as published: 1 - 0.999 is off by 5e-5 there, and theta was learned with that.
    initial = np.log(np.float32(1.0) - np.asarray(initial_decays, "float32")) / np.float32(10.0)
    return 1.0 - ops.exp(10.0 * (initial + offsets))


def factored_axes(shape):
    """The axes `(d1, d0)` of the second largest and the largest dimension.

    Ties are broken by a stable sort, as in the published implementation. Where
    a size is unknown (`None`: the signatures of an exported SavedModel), the
    caller has sorted the dimensions, and the answer is the last two axes.

    Args:
        shape: a tensor's own shape, without the particle axis.

    Returns:
        A pair of axes of `shape`, or `None` for tensors of rank 0 and 1, whose
        second moment is not factored.

    Source: Shazeer and Stern, arXiv 1804.04235, section 3; Metz et al., arXiv 2203.11860.
    """
    if len(shape) < 2:
        return None
    if None in shape:
        return len(shape) - 2, len(shape) - 1
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def safe_rsqrt(x):
    return ops.rsqrt(ops.maximum(x, 1e-9))


def gradients_are_usable(gradients):
    """Whether all gradients are finite, with squares that float32 can sum.

    The rules accumulate squared gradients: one that overflows would poison the
    state for good, just as a NaN would.

    Args:
        gradients: list of `[P, *shape]`.

    Returns:
        `[P]` booleans.
    """
    usable = None
    for gradient in gradients:
        axes = tuple(range(1, len(gradient.shape)))
        finite = ops.isfinite(ops.sum(ops.square(gradient), axis=axes))
        usable = finite if usable is None else ops.logical_and(usable, finite)
    return usable


def select(condition, new, old):
    """`new` for the particles in which `condition` holds, `old` for the others.

    Args:
        condition: `[P]` booleans.
        new, old: `[P, ...]`.
    """
    rank = len(new.shape)
    return ops.where(ops.reshape(condition, (-1, *(1,) * (rank - 1))), new, old)
