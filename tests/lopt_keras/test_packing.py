import numpy as np
from keras import ops

from lopt_keras.packing import Packing


def is_large(x):
    return len(x.shape) == 4


def state():
    shapes = {"tiles": (2, 3, 1, 4), "mean": (2, 3), "weight": (2,), "square": (2, 5, 3)}
    rng = np.random.default_rng(0)
    return {
        name: ops.convert_to_tensor(rng.standard_normal(shape).astype("float32"))
        for name, shape in shapes.items()
    }


def test_unpack_undoes_pack():
    given = state()
    packing = Packing.of(given, is_large)
    found = packing.unpack(packing.pack(given))
    assert set(found) == set(given)
    for name, x in given.items():
        np.testing.assert_array_equal(found[name], x)


def test_small_arrays_are_one():
    given = state()
    packed = Packing.of(given, is_large).pack(given)
    assert {name: tuple(x.shape) for name, x in packed.items()} == {
        "tiles": (2, 3, 1, 4),
        "statistics": (2, 3 + 1 + 15),
    }


def test_nothing_small():
    given = {"tiles": state()["tiles"]}
    packing = Packing.of(given, is_large)
    assert set(packing.pack(given)) == set(packing.unpack(given)) == {"tiles"}
