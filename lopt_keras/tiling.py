"""The tensors of a model side by side, in a few large arrays.

A matrix is cut into tiles, a vector into rows. All tiles of one size are in one array. So a
step takes a few operations on large arrays, however many tensors a model has. These are
quick to trace, to compile and to run.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from lopt_keras.types import Tensor

_LONGEST = 128
_SPARE_SHARE, _SPARE = 0.1, 1024
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)
"""What the sides of a tile may be."""


class Group(NamedTuple):
    """Tiles of one size.

    Attributes:
        rows, columns: of a tile; one row for what is not cut as a matrix.
        members: indices of the tensors, in the order of their tiles.
        segments: `[N]`, for each tile the index of its tensor.
    """

    rows: int
    columns: int
    members: tuple[int, ...]
    segments: np.ndarray

    @property
    def name(self) -> str:
        """For the names of arrays."""
        return f"{self.rows}x{self.columns}"


class Tiling:
    """How tensors of given shapes are cut.

    A tensor of rank 3 and more counts as the matrix of all its axes but the last by the
    last. The rows of a tile run along the shorter side of the matrix. Both sides of a tile
    are powers of two, as large as allowed or as the matrix needs, and larger where that costs
    little and saves a group; what sticks out is filled with zeros.

    Args:
        shapes: tuple of shapes, without the particle axis.
        as_matrices: tuple of bools, which of them are cut as matrices.
        most_rows, most_columns: of a tile.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        as_matrices: Sequence[bool],
        most_rows: int,
        most_columns: int,
    ) -> None:
        self.shapes, self.as_matrices = shapes, as_matrices
        self.counts = [math.prod(shape) for shape in shapes]
        self.key = shapes, as_matrices, most_rows, most_columns
        self._cuts = _merged(
            [
                _Cut.of(shape, as_matrix, most_rows, most_columns)
                for shape, as_matrix in zip(shapes, as_matrices, strict=True)
            ]
        )
        sizes = sorted({cut.tile for cut in self._cuts})
        self.groups = [self._group(rows, columns) for rows, columns in sizes]
        self._segments = np.concatenate([group.segments for group in self.groups])

    def _group(self, rows: int, columns: int) -> Group:
        members = tuple(i for i, cut in enumerate(self._cuts) if cut.tile == (rows, columns))
        counts = [self._cuts[i].num_tiles for i in members]
        return Group(rows, columns, members, np.repeat(np.asarray(members, "int32"), counts))

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tiles of tensors `[P, *shape]`: list of `[P, N, rows, columns]`, one per group."""
        return [
            _concatenate([self._cuts[i].tiles(tensors[i]) for i in group.members])
            for group in self.groups
        ]

    def scatter(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of which these are the tiles: list of `[P, *shape]`."""
        tensors = [None] * len(self.shapes)
        for group, array in zip(self.groups, tiles, strict=True):
            first = 0
            for i in group.members:
                last = first + self._cuts[i].num_tiles
                tensors[i] = self._cuts[i].tensor(array[:, first:last], self.shapes[i])
                first = last
        return tensors

    def sums(self, *values: Sequence[Tensor]) -> list[Tensor]:
        """The sums over each tensor's tiles of several quantities.

        All in one operation, as each costs time to compile.

        Args:
            values: for each quantity a list of `[P, N, 1, 1]`.

        Returns:
            For each quantity `[P, tensors]`.
        """
        rows = [ops.concatenate([x[:, :, 0, 0] for x in value], axis=1) for value in values]
        rows = ops.concatenate(rows, axis=0)
        sums = ops.segment_sum(ops.transpose(rows), self._segments, len(self.shapes))
        return list(ops.split(ops.transpose(sums), len(values), axis=0))

    def spread(self, *values: Tensor) -> list[list[Tensor]]:
        """Several quantities of each tensor against tiles, all in one operation.

        Args:
            values: for each quantity `[P, tensors]`.

        Returns:
            For each quantity a list of `[P, N, 1, 1]`.
        """
        rows = ops.take(ops.concatenate(values, axis=0), self._segments, axis=1)
        ends = np.cumsum([len(group.segments) for group in self.groups]).tolist()
        bounds = list(zip([0, *ends], ends, strict=False))
        return [
            [row[:, first:last, None, None] for first, last in bounds]
            for row in ops.split(rows, len(values), axis=0)
        ]


@functools.lru_cache(maxsize=64)
def tiling(
    shapes: tuple[tuple[int, ...], ...],
    as_matrices: tuple[bool, ...],
    most_rows: int,
    most_columns: int,
) -> Tiling:
    """The `Tiling` of these arguments."""
    return Tiling(shapes, as_matrices, most_rows, most_columns)


class _Cut(NamedTuple):
    """How one tensor is cut.

    Attributes:
        rows, columns: of a tile.
        height, width: of the matrix.
        transposed: whether rows of a tile run along the columns of the matrix.
    """

    rows: int
    columns: int
    height: int
    width: int
    transposed: bool

    @classmethod
    def of(cls, shape: Sequence[int], as_matrix: bool, most_rows: int, most_columns: int) -> "_Cut":
        size = math.prod(shape)
        if not as_matrix:
            return cls(1, _length(size, _LONGEST), 1, size, False)
        height, width = size // shape[-1], shape[-1]
        short, long = sorted((height, width))
        return cls(
            _length(short, most_rows), _length(long, most_columns), height, width, width < height
        )

    @property
    def _down(self) -> tuple[int, ...]:
        """Number of tiles one below the other, entries of each, and the same across."""
        size = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        return -(-self.height // size[0]), size[0], -(-self.width // size[1]), size[1]

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self.rows, self.columns

    @property
    def size(self) -> int:
        """The entries of all its tiles."""
        return self.num_tiles * self.rows * self.columns

    @property
    def num_tiles(self) -> int:
        """The number of tiles."""
        down, _, across, _ = self._down
        return down * across

    def tiles(self, tensor: Tensor) -> Tensor:
        """`[P, *shape]` -> `[P, count, rows, columns]`."""
        down, high, across, wide = self._down
        x = ops.reshape(tensor, (-1, self.height, self.width))
        spare = down * high - self.height, across * wide - self.width
        if any(spare):
            x = ops.pad(x, [(0, 0), (0, spare[0]), (0, spare[1])])
        if across > 1 or self.transposed:
            x = ops.reshape(x, (-1, down, high, across, wide))
            x = ops.transpose(x, (0, 1, 3, 4, 2) if self.transposed else (0, 1, 3, 2, 4))
        return ops.reshape(x, (-1, self.num_tiles, self.rows, self.columns))

    def tensor(self, tiles: Tensor, shape: Sequence[int]) -> Tensor:
        """`[P, count, rows, columns]` -> `[P, *shape]`."""
        down, high, across, wide = self._down
        x = tiles
        if across > 1 or self.transposed:
            x = ops.reshape(x, (-1, down, across, self.rows, self.columns))
            x = ops.transpose(x, (0, 1, 4, 2, 3) if self.transposed else (0, 1, 3, 2, 4))
        x = ops.reshape(x, (-1, down * high, across * wide))
        return ops.reshape(x[:, : self.height, : self.width], (-1, *shape))


def _merged(cuts: Any) -> Any:
    """The same cuts, in tiles of fewer sizes: each size costs some ten operations a step."""
    spare = max(_SPARE_SHARE * sum(cut.size for cut in cuts), _SPARE)
    for small in sorted({cut.tile for cut in cuts}):
        # A row stays a row: what has one row is no matrix.
        larger = [
            tile
            for tile in sorted({cut.tile for cut in cuts})
            if tile > small and tile[1] >= small[1] and (tile[0] == 1) == (small[0] == 1)
        ]
        for rows, columns in larger:
            wider = [
                cut._replace(rows=rows, columns=columns) if cut.tile == small else cut
                for cut in cuts
            ]
            cost = sum(cut.size for cut in wider) - sum(cut.size for cut in cuts)
            if cost <= spare:
                cuts, spare = wider, spare - cost
                break
    return cuts


def _length(size: Tensor, most: int) -> int:
    """The smallest power of two that holds `size`, or `most`."""
    return next((length for length in LENGTHS if length >= size and length <= most), most)


def _concatenate(arrays: Sequence[Tensor]) -> Tensor:
    return arrays[0] if len(arrays) == 1 else ops.concatenate(arrays, axis=1)
