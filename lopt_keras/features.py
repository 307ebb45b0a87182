"""What the learned rules read: accumulators, factored second moments, time.

Shapes are written with `P` particles (copies of one optimizer that run side by
side; the Keras optimizer has P = 1), `F` features and a tensor's own `*shape`.
Features come before the tensor's dimensions, so that each is a contiguous plane.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""The `c` of `time_embedding` (Metz et al., arXiv 1810.10180, appendix)."""

_LONG, _MOST_PARTS, _ROW = 256, 8, (8, 2**16)


def constant(values):
    """A float32 tensor. NumPy's arrays do not mix with those of every backend."""
    return ops.convert_to_tensor(np.asarray(values, "float32"))


def broadcast_over(values, rank):
    """`[P, F]` -> `[P, F, 1, ..., 1]`, against features of a rank-`rank` tensor."""
    return ops.reshape(values, (*values.shape, *(1,) * rank))


def accumulate(accumulator, value, decay):
    """`a <- b a + (1 - b) x`, without bias correction."""
    return decay * accumulator + (1.0 - decay) * value


def accumulate_both(m, rms, g, momentum_decay, rms_decay):
    """The accumulators of g and of g^2."""
    m = accumulate(m, g, momentum_decay)
    return m, accumulate(rms, ops.square(g), rms_decay)


def second_moment_scale(x, epsilon, axis):
    """`rsqrt(epsilon + mean(x^2))` over the axes, which are kept with size 1.

    Without axes, entry by entry.
    """
    squares = ops.square(x)
    return ops.rsqrt(epsilon + (mean(squares, axis) if axis else squares))


def mean(x, axis):
    """The mean over an axis, or over several neighbouring axes, kept with size 1."""
    if None in x.shape:
        return ops.mean(x, axis=axis, keepdims=True)
    return total(x, axis) / math.prod(x.shape[i] for i in _tuple(axis))


def means(arrays, axis):
    """The mean of each array over its last axes, side by side: `[P, F_i, ...]` -> `[P, F, ...]`.

    As `mean` of each and a concatenation, in half as many kernels.

    Args:
        arrays: list of arrays that differ in the size of their axis 1 only.
        axis: the last axes, none of them before axis 2, kept with size 1.
    """
    first = _tuple(axis)[0]
    sizes = arrays[0].shape[first:]
    if None in arrays[0].shape or math.prod(sizes) < _LONG:
        return ops.concatenate([mean(x, axis) for x in arrays], axis=1)
    count, length = math.prod(sizes), _row_length(sizes)
    ones = _ones(length)
    rows = [ops.reshape(_row_sums(x, ones), (*x.shape[:first], -1)) for x in arrays]
    rows = ops.concatenate(rows, axis=1)
    sums = _row_sums(rows, _ones(count // length)) / count
    return ops.reshape(sums, (*rows.shape[:-1], *(1,) * len(sizes)))


def total(x, axis):
    """The sum over an axis, or over several neighbouring axes, kept with size 1.

    XLA adds up one number after the other on CPUs, where it does not fuse either. A
    matrix product with ones, and sums of whole slices, use the vector units.
    """
    axis = _tuple(axis)
    if not axis:
        return x
    if None in x.shape:
        return ops.sum(x, axis=axis, keepdims=True)
    sizes = x.shape[axis[0] : axis[-1] + 1]
    if math.prod(sizes) < _LONG:
        return ops.sum(x, axis=axis, keepdims=True)
    if math.prod(x.shape[axis[-1] + 1 :]) > 1:
        parts = max(k for k in range(1, _MOST_PARTS + 1) if sizes[0] % k == 0)
        return ops.sum(sum(ops.split(x, parts, axis=axis[0])), axis=axis, keepdims=True)
    length = _row_length(sizes)
    sums = _row_sums(_row_sums(x, _ones(length)), _ones(math.prod(sizes) // length))
    return ops.reshape(sums, [1 if i in axis else size for i, size in enumerate(x.shape)])


def _row_sums(x, ones):
    """The sums of as many consecutive entries as there are `ones`, all in one column."""
    return ops.matmul(ops.reshape(x, (-1, ones.shape[0])), ones)


def _ones(length):
    return ops.ones((length, 1), "float32")


def _row_length(sizes):
    """How many entries to add up at a time: whole rows, if they are of a good length."""
    length = 1
    for size in reversed(sizes):
        length *= size
        if length >= _ROW[0]:
            break
    if length <= _ROW[1]:
        return length
    return max(k for k in range(1, 1025) if length % k == 0)


def _tuple(axis):
    return (axis,) if isinstance(axis, int) else tuple(axis)


def clipped_log(x):
    """`clip(log(1e-8 + |x|), -5, 5)` (Metz et al., arXiv 2009.11243, appendix)."""
    return ops.clip(ops.log(1e-8 + ops.abs(x)), -5.0, 5.0)


def flat(x):
    """`[P, *shape]` -> `[P, n]`."""
    return ops.reshape(x, (x.shape[0], -1))


def norm(x):
    """The Euclidean norm of each particle's tensor: `[P, *shape]` -> `[P]`."""
    # Not exactly zero, where the square root has no derivative.
    return ops.sqrt(total(ops.square(flat(x)), 1)[:, 0] + 1e-30)


def moments(x):
    """Mean and population variance of each particle's tensor, `[P]` each."""
    average = mean(flat(x), 1)
    return average[:, 0], mean(ops.square(flat(x) - average), 1)[:, 0]


def sine_embedding(step):
    """`sin(t / (c pi))` for each c of `TIMESCALES`: `[P, 1]` -> `[P, 11]`.

    Source: Metz et al., arXiv 2009.11243, appendix.
    """
    return ops.sin(step / (constant(TIMESCALES) * np.float32(np.pi)))


def time_embedding(step):
    """`tanh(t / c - 1)` for each c of `TIMESCALES`.

    Args:
        step: `[P]`, steps taken so far, counted from 0.

    Returns:
        `[P, 11]` float32.

    Source: Metz et al., arXiv 1810.10180, appendix.
    """
    step = ops.cast(step, "float32")[:, None]
    return ops.tanh(step / constant(TIMESCALES) - 1.0)


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
    return 1.0 - ops.exp(10.0 * (constant(initial) + offsets))


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


def safe_sqrt(x):
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

    state: Any
    grad_factors: Any
    momentum_factors: Any
    row: Any
    col: Any


def init_factored_moments(param, count):
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


def factored_moments(state, grad, decay):
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
    row = accumulate(state["row"], mean(squared, d0), decay)
    col = accumulate(state["col"], mean(squared, d1), decay)
    row_mean = mean(row, d1)
    factors = safe_rsqrt(row / (row_mean + 1e-9)), safe_rsqrt(col)
    return FactoredMoments({"row": row, "col": col}, factors, factors, row, col)


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
        finite = ops.isfinite(ops.reshape(total(ops.square(gradient), axes), (-1,)))
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
