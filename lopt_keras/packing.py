"""The small arrays of a state, side by side in one.

Each array of a state costs a program of its own to write it, and a variable to keep it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from lopt_keras.types import Tensor, Tensors

_PACKED = "statistics"


class Packing(NamedTuple):
    """What stands in the packed array.

    Attributes:
        entries: the name of each small array and its shape, without the particle axis.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, state: Tensors, is_large: Callable[[Tensor], bool]) -> "Packing":
        """That of a state of `[P, ...]` arrays, except for what `is_large`."""
        small = {name: x for name, x in state.items() if not is_large(x)}
        return cls(tuple((name, tuple(x.shape[1:])) for name, x in small.items()))

    def pack(self, state: Tensors) -> Tensors:
        """The state with `statistics`, `[P, n]`, in place of the small arrays."""
        names = dict(self.entries)
        large = {name: x for name, x in state.items() if name not in names}
        parts = [ops.reshape(state[n], (-1, math.prod(shape))) for n, shape in self.entries]
        return {**large, _PACKED: ops.concatenate(parts, axis=1)} if parts else large

    def unpack(self, packed: Tensors) -> Tensors:
        """The state that `pack` was given."""
        state = {name: x for name, x in packed.items() if name != _PACKED}
        if not self.entries:
            return state
        ends = np.cumsum([math.prod(shape) for _, shape in self.entries]).tolist()
        parts = ops.split(packed[_PACKED], ends[:-1], axis=1)
        named = zip(self.entries, parts, strict=True)
        return {**state, **{name: ops.reshape(x, (-1, *shape)) for (name, shape), x in named}}
