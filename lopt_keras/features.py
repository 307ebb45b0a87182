"""What the learned rules read: accumulators, factored second moments, time.

Shapes are written with `P` particles (copies of one optimizer that run side by
side; the Keras optimizer has P = 1), `F` features and a tensor's own `*shape`.
Features come before the tensor's dimensions, so that each is a contiguous plane.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from lopt_keras import reductions
from lopt_keras.types import Shape, Tensor, Tensors

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""The `c` of `time_embedding` (Metz et al., arXiv 1810.10180, appendix)."""


def constant(values: Tensor) -> Tensor:
    """A float32 tensor. NumPy's arrays do not mix with those of every backend."""
    return ops.convert_to_tensor(np.asarray(values, "float32"))


def broadcast_over(values: Tensor, rank: int) -> Tensor:
    """`[P, F]` -> `[P, F, 1, ..., 1]`, against features of a rank-`rank` tensor."""
    return ops.reshape(values, (*values.shape, *(1,) * rank))


def accumulate(accumulator: Tensor, value: Any, decay: Tensor) -> Tensor:
    """`a <- b a + (1 - b) x`, without bias correction."""
    return decay * accumulator + (1.0 - decay) * value


def accumulate_both(
    m: Tensor, rms: Tensor, g: Tensor, momentum_decay: Tensor, rms_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """The accumulators of g and of g^2."""
    m = accumulate(m, g, momentum_decay)
    return m, accumulate(rms, ops.square(g), rms_decay)


def second_moment_scale(x: Tensor, epsilon: float, axis: int | Sequence[int] | None) -> Tensor:
    """`rsqrt(epsilon + mean(x^2))` over the axes, which are kept with size 1.

    Without axes, entry by entry.
    """
    squares = ops.square(x)
    return ops.rsqrt(epsilon + (reductions.mean(squares, axis) if axis else squares))


def clipped_log(x: Tensor) -> Tensor:
    """`clip(log(1e-8 + |x|), -5, 5)` (Metz et al., arXiv 2009.11243, appendix)."""
    return ops.clip(ops.log(1e-8 + ops.abs(x)), -5.0, 5.0)


def flat(x: Tensor) -> Tensor:
    """`[P, *shape]` -> `[P, n]`."""
    return ops.reshape(x, (x.shape[0], -1))


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each particle's tensor: `[P, *shape]` -> `[P]`."""
    # Not exactly zero, where the square root has no derivative.
    return ops.sqrt(reductions.total(ops.square(flat(x)), 1)[:, 0] + 1e-30)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each particle's tensor, `[P]` each."""
    average = reductions.mean(flat(x), 1)
    return average[:, 0], reductions.mean(ops.square(flat(x) - average), 1)[:, 0]


def sine_embedding(step: Tensor) -> Tensor:
    """`sin(t / (c pi))` for each c of `TIMESCALES`: `[P, 1]` -> `[P, 11]`.

    Source: Metz et al., arXiv 2009.11243, appendix.
    """
    return ops.sin(step / (constant(TIMESCALES) * np.float32(np.pi)))


def time_embedding(step: Tensor) -> Tensor:
    """`tanh(t / c - 1)` for each c of `TIMESCALES`.

    Args:
        step: `[P]`, steps taken so far, counted from 0.

    Returns:
        `[P, 11]` float32.

    Source: Metz et al., arXiv 1810.10180, appendix.
    """
    step = ops.cast(step, "float32")[:, None]
    return ops.tanh(step / constant(TIMESCALES) - 1.0)


def decays_from_offsets(initial_decays: Sequence[float], offsets: Tensor) -> Tensor:
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
    return 1.0 - ops.exp(10.0 * (constant(initial) + offsets))


def factored_axes(shape: Shape) -> tuple[int, int] | None:
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


def safe_rsqrt(x: Tensor) -> Tensor:
    return ops.rsqrt(ops.maximum(x, 1e-9))


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with a derivative at zero too (which XLA makes NaN)."""
    return ops.sqrt(ops.maximum(x, 1e-30))


class FactoredMoments(NamedTuple):
    """Second moments of a tensor, and what preconditions with them.

    Attributes:
        state: dict of the accumulators; `row` and `col` for rank 2 and more, `v`
            for less.
        grad_factors, momentum_factors: pairs of arrays that broadcast to
            `[P, F, *shape]`, by the products of which g and m are multiplied.
        row, col: the accumulators as features, which broadcast to the tensor.
    """

    state: Tensors
    grad_factors: tuple[Tensor, Tensor]
    momentum_factors: tuple[Tensor, Tensor]
    row: Tensor
    col: Tensor


def init_factored_moments(param: Tensor, count: int) -> Tensors:
    """The accumulators before the first step, `count` of each, for `[P, *shape]`."""
    particles, *shape = ops.shape(param)
    axes = factored_axes(param.shape[1:])
    if axes is None:
        return {"v": ops.zeros((particles, count, *shape), "float32")}
    state = {}
    for name, axis in zip(("col", "row"), axes, strict=True):
        reduced = [1 if i == axis else size for i, size in enumerate(shape)]
        state[name] = ops.zeros((particles, count, *reduced), "float32")
    return state


def factored_moments(state: Tensors, grad: Tensor, decay: Tensor) -> FactoredMoments:
    """The factored second moments after a step.

    For tensors of rank 0 and 1, all is entry by entry, and row and column are both v.

    Args:
        state: dict, as from `init_factored_moments`.
        grad: `[P, *shape]`.
        decay: broadcasts to `[P, F, *shape]`.

    Returns:
        `FactoredMoments`.

    Source: Shazeer and Stern, arXiv 1804.04235, section 3; Metz et al., arXiv 2203.11860.
    """
    squared = ops.square(grad[:, None]) + 1e-30
    axes = factored_axes(grad.shape[1:])
    if axes is None:
        v = accumulate(state["v"], squared, decay)
        one = broadcast_over(constant([[1.0]]), len(grad.shape) - 1)
        factors = (safe_rsqrt(v + 1e-9), one), (ops.rsqrt(v + 1e-6), one)
        return FactoredMoments({"v": v}, *factors, v, v)
    d1, d0 = (axis + 2 for axis in axes)
    row = accumulate(state["row"], reductions.mean(squared, d0), decay)
    col = accumulate(state["col"], reductions.mean(squared, d1), decay)
    row_mean = reductions.mean(row, d1)
    factors = safe_rsqrt(row / (row_mean + 1e-9)), safe_rsqrt(col)
    return FactoredMoments({"row": row, "col": col}, factors, factors, row, col)
