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

from lopt_keras.types import Shape, Tensor

_LONGEST = 128
_ROW_LENGTHS, _ROW_COST = [2**k for k in range(3, 9)], 64
_SPARE_SHARE = 0.1
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
        spare: how many zeros may fill larger tiles, so that there are fewer groups; a tenth of
            all entries may in any case.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        as_matrices: Sequence[bool],
        most_rows: int,
        most_columns: int,
        spare: int,
    ) -> None:
        self.shapes, self.as_matrices = shapes, as_matrices
        self.counts = [math.prod(shape) for shape in shapes]
        self._cuts = _merged(
            [
                _Cut.of(shape, as_matrix, most_rows, most_columns)
                for shape, as_matrix in zip(shapes, as_matrices, strict=True)
            ],
            spare,
        )
        sizes = sorted({cut.tile for cut in self._cuts})
        self.groups = [self._group(rows, columns) for rows, columns in sizes]
        self._segments = np.concatenate([group.segments for group in self.groups])
        self._row_length = min(_ROW_LENGTHS, key=self._cost_of_rows)
        num_rows = [-(-count // self._row_length) for count in self.counts]
        self._row_segments = np.repeat(np.arange(len(shapes), dtype="int32"), num_rows)

    def _cost_of_rows(self, length: int) -> int:
        return sum(-(-count // length) for count in self.counts) * (length + _ROW_COST)

    def _group(self, rows: int, columns: int) -> Group:
        members = tuple(i for i, cut in enumerate(self._cuts) if cut.tile == (rows, columns))
        counts = [self._cuts[i].num_tiles for i in members]
        return Group(rows, columns, members, np.repeat(np.asarray(members, "int32"), counts))

    def flat(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors `[P, *shape]` as `[P, n]`, as `gather` and `rows` take them."""
        pairs = zip(tensors, self.counts, strict=True)
        return [ops.reshape(tensor, (-1, count)) for tensor, count in pairs]

    def gather(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """The tiles of tensors `[P, n]`: list of `[P, N, rows, columns]`, one per group."""
        tiles = []
        for group in self.groups:
            parts = [part for i in group.members for part in self._cuts[i].parts(flat[i])]
            tiles.append(_joined(parts, (len(group.segments), group.rows, group.columns)))
        return tiles

    def rows(self, flat: Sequence[Tensor]) -> Tensor:
        """The entries of tensors `[P, n]` in rows, each of one tensor: `[P, R, length]`.

        For sums, which do not ask where an entry stands. Zeros fill up the last row of each.
        """
        parts = []
        for tensor, count in zip(flat, self.counts, strict=True):
            parts += _filled(tensor, -count % self._row_length)
        return _joined(parts, (len(self._row_segments), self._row_length))

    def scatter(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of which these are the tiles: list of `[P, *shape]`."""
        tensors = [None] * len(self.shapes)
        for group, array in zip(self.groups, tiles, strict=True):
            sizes = [size for i in group.members for size in self._cuts[i].part_sizes]
            parts = iter(_parted(ops.reshape(array, (-1, sum(sizes))), sizes))
            for i in group.members:
                cut = self._cuts[i]
                own = [next(parts) for _ in cut.part_sizes]
                tensors[i] = ops.reshape(cut.entries(own[0]), (-1, *self.shapes[i]))
        return tensors

    def firsts(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What `spread` gave for one quantity, of each tensor again: list of `[P, 1]`."""
        tensors = [None] * len(self.shapes)
        for group, value in zip(self.groups, values, strict=True):
            tiles = [np.argmax(group.segments == i) for i in group.members]
            first = ops.take(ops.reshape(value, (-1, len(group.segments))), tiles, axis=1)
            for i, x in zip(group.members, _parted(first, [1] * len(tiles)), strict=True):
                tensors[i] = x
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
        return self._segment_sums(rows, self._segments)

    def row_sums(self, *values: Tensor) -> list[Tensor]:
        """As `sums`, from sums over each of the `rows`: for each quantity `[P, R]`."""
        return self._segment_sums(values, self._row_segments)

    def _segment_sums(self, values: Sequence[Tensor], segments: np.ndarray) -> list[Tensor]:
        rows = ops.transpose(_joined_rows(values))
        sums = ops.segment_sum(rows, segments, len(self.shapes))
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
    spare: int,
) -> Tiling:
    """The `Tiling` of these arguments."""
    return Tiling(shapes, as_matrices, most_rows, most_columns, spare)


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

    @property
    def part_sizes(self) -> list[int]:
        """The numbers of entries of its `parts`."""
        spare = self.size - self.width if self._is_row else 0
        return [self.size - spare, spare] if spare else [self.size]

    @property
    def _is_row(self) -> bool:
        return self.rows == 1 and self.height == 1

    def parts(self, flat: Tensor) -> list[Tensor]:
        """The entries of its tiles, one after the other: `[P, n]` -> list of `[P, part_size]`."""
        if self._is_row:
            return _filled(flat, self.size - self.width)
        down, high, across, wide = self._down
        spare = down * high - self.height, across * wide - self.width
        if any(spare):
            x = ops.reshape(flat, (-1, self.height, self.width))
            flat = ops.pad(x, [(0, 0), (0, spare[0]), (0, spare[1])])
        if across > 1 or self.transposed:
            x = ops.reshape(flat, (-1, down, high, across, wide))
            flat = ops.transpose(x, (0, 1, 3, 4, 2) if self.transposed else (0, 1, 3, 2, 4))
        return [ops.reshape(flat, (-1, self.size))]

    def entries(self, part: Tensor) -> Tensor:
        """From the first of its parts to `[P, height, width]`, or what reshapes to that."""
        if self._is_row:
            return part
        down, high, across, wide = self._down
        if across > 1 or self.transposed:
            x = ops.reshape(part, (-1, down, across, self.rows, self.columns))
            part = ops.transpose(x, (0, 1, 4, 2, 3) if self.transposed else (0, 1, 3, 2, 4))
        if (down * high, across * wide) == (self.height, self.width):
            return part
        x = ops.reshape(part, (-1, down * high, across * wide))
        return x[:, : self.height, : self.width]


def _merged(cuts: Any, spare: float) -> Any:
    """The same cuts, in tiles of fewer sizes: each size costs some twenty operations a step."""
    spare = max(_SPARE_SHARE * sum(cut.size for cut in cuts), spare)
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


def _filled(entries: Tensor, spare: int) -> list[Tensor]:
    """`[P, n]`, and so many zeros after them."""
    if not spare:
        return [entries]
    return [entries, ops.zeros((ops.shape(entries)[0], spare), "float32")]


def _joined(parts: Sequence[Tensor], shape: Shape) -> Tensor:
    """All entries of `[P, n]` arrays, one after the other, as `[P, *shape]`."""
    # Along the last axis: XLA copies whole parts then. Along another one it would compute
    # the parts within the concatenation, and find out for each entry whose it is.
    entries = parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)
    return ops.reshape(entries, (-1, *shape))


def _parted(entries: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """`[P, n]` cut along its last axis."""
    if len(sizes) == 1:
        return [entries]
    return list(ops.split(entries, np.cumsum(sizes)[:-1].tolist(), axis=1))


def _joined_rows(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else ops.concatenate(values, axis=0)
