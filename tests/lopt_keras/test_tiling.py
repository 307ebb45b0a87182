import numpy as np
import pytest
from keras import ops

from lopt_keras import tiling

SHAPES = ((70, 33), (5,), (3, 3, 2, 40), (), (40, 3), (300,), (2, 2))
AS_MATRICES = (True, False, True, False, True, False, True)


@pytest.fixture
def layout():
    return tiling.tiling(SHAPES, AS_MATRICES, 16, 32, 1024)


def tensors(particles=2):
    rng = np.random.default_rng(0)
    return [
        ops.convert_to_tensor(rng.standard_normal((particles, *s)).astype("float32"))
        for s in SHAPES
    ]


def test_scatter_undoes_gather(layout):
    given = tensors()
    for x, y in zip(given, layout.scatter(layout.gather(layout.flat(given))), strict=True):
        np.testing.assert_array_equal(x, y)


def test_every_entry_is_in_one_tile_and_the_rest_is_zero(layout):
    tiles = layout.gather(layout.flat([ops.ones_like(x) for x in tensors()]))
    for tile in tiles:
        assert set(np.unique(tile)) <= {0.0, 1.0}
    assert sum(int(np.sum(tile[0])) for tile in tiles) == sum(layout.counts)


def test_rows_of_a_tile_run_along_the_shorter_side():
    layout = tiling.tiling(((64, 4),), (True,), 4, 32, 1024)
    matrix = np.arange(256, dtype="float32").reshape(1, 64, 4)
    (tiles,) = layout.gather(layout.flat([ops.convert_to_tensor(matrix)]))
    np.testing.assert_array_equal(tiles[0, 0], matrix[0, :32].T)
    np.testing.assert_array_equal(tiles[0, 1], matrix[0, 32:].T)


def test_tiles_are_no_larger_than_needed(layout):
    sizes = {(g.rows, g.columns): g.members for g in layout.groups}
    # Rows of 1 and 8 in one of 128, and a matrix of 2 x 2 in a tile of 4 x 32, cost little.
    assert sizes == {(1, 128): (1, 3, 5), (4, 32): (4, 6), (16, 32): (0, 2)}


@pytest.mark.parametrize(
    ("spare", "sizes"), [(1024, [(4, 16), (32, 128)]), (20 * (32 * 128 - 4 * 16), [(32, 128)])]
)
def test_tiles_are_not_merged_where_that_costs_much(spare, sizes):
    shapes = ((4, 16),) * 20 + ((32, 128),)
    layout = tiling.tiling(shapes, (True,) * 21, 32, 128, spare)
    assert [(g.rows, g.columns) for g in layout.groups] == sizes


def test_sums_are_over_each_tensor(layout):
    given = tensors()
    tiles = [ops.sum(t, axis=(2, 3), keepdims=True) for t in layout.gather(layout.flat(given))]
    expected = np.stack([np.reshape(x, (2, -1)).sum(axis=1) for x in given], axis=1)
    once, twice = layout.sums(tiles, [2.0 * tile for tile in tiles])
    np.testing.assert_allclose(once, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(twice, 2.0 * expected, rtol=1e-4, atol=1e-4)


def test_sums_of_rows_are_over_each_tensor(layout):
    given = tensors()
    rows = ops.sum(layout.rows(layout.flat(given)), axis=2)
    expected = np.stack([np.reshape(x, (2, -1)).sum(axis=1) for x in given], axis=1)
    once, twice = layout.row_sums(rows, 2.0 * rows)
    np.testing.assert_allclose(once, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(twice, 2.0 * expected, rtol=1e-4, atol=1e-4)


def test_firsts_undo_spread(layout):
    values = ops.convert_to_tensor(np.arange(14, dtype="float32").reshape(2, 7))
    found = layout.firsts(layout.spread(values)[0])
    np.testing.assert_array_equal(np.concatenate(found, axis=1), values)


def test_spread_gives_each_tile_the_value_of_its_tensor(layout):
    values = ops.convert_to_tensor(np.arange(14, dtype="float32").reshape(2, 7))
    for group, once, twice in zip(layout.groups, *layout.spread(values, 2 * values), strict=True):
        np.testing.assert_array_equal(once[1, :, 0, 0], 7.0 + group.segments)
        np.testing.assert_array_equal(twice[1, :, 0, 0], 2.0 * (7.0 + group.segments))
