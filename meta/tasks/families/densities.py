"""Densities to sample from: four in the plane, and one of real data.

Each is a function from a seed and a shape to points `[*shape, dimension]` float32, with
coordinates of mean about zero and standard deviation about one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from meta import datasets, random
from meta.tasks.families.two_moons import draw_points

_PROJECTED = 8
_SQUARES = 4
_MODES, _RINGS = 8, 3
# Standard deviations that the raw coordinates have.
_MOONS_STD, _RINGS_STD, _CIRCLE_STD = (0.87, 0.5), 0.509, 0.5**0.5
_BOARD_STD = 3**-0.5


def two_moons(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Two interleaved half circles."""
    zeros = tf.zeros(shape[0])
    return draw_points(seed, shape, zeros, zeros)[0] / _MOONS_STD


def rings(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Circles of radii 1/3, 2/3 and 1, equally likely, scaled."""
    angle = random.uniform(shape, random.fold_in(seed, 0), 0.0, 2 * math.pi)
    ring = 1 + random.integers(shape, random.fold_in(seed, 1), _RINGS)
    radius = tf.cast(ring, tf.float32) / (_RINGS * _RINGS_STD)
    return radius[..., None] * _direction(angle)


def checkerboard(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform on the black squares of a 4x4 board."""
    column = random.integers(shape, random.fold_in(seed, 0), _SQUARES)
    row = 2 * random.integers(shape, random.fold_in(seed, 1), _SQUARES // 2) + column % 2
    corner = tf.cast(tf.stack([column, row], axis=-1), tf.float32)
    within = random.uniform((*shape, 2), random.fold_in(seed, 2))
    return ((corner + within) * (2 / _SQUARES) - 1.0) / _BOARD_STD


def mixture(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Eight points on a circle: with normal noise, a mixture of eight Gaussians."""
    mode = tf.cast(random.integers(shape, seed, _MODES), tf.float32)
    return _direction(mode * (2 * math.pi / _MODES)) / _CIRCLE_STD


Sampler: TypeAlias = Callable[[Tensor, Sequence[int]], Tensor]
"""From a seed `[2]` and a shape to points `[*shape, dimension]`."""

PLANE: dict[str, Sampler] = {
    "two_moons": two_moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "mixture": mixture,
}
"""The densities in the plane, by name; without noise, some of them lie on lines or points."""

NAMES = (*PLANE, "digits")


def splits(name: str, data_dir: str | None = None) -> tuple[dict[str, Sampler], int]:
    """What samples a density, for each split, and its dimension.

    Those of the plane are the same in all splits; "digits" are the first 8 principal
    components of handwritten digits, scaled to standard deviation one each, as the
    training split has them.

    Args:
        name: one of `NAMES`.
        data_dir: where datasets are prepared; see `datasets.load`.

    Returns:
        Dict from the name of each split to a function from seed and shape to points; and
        the dimension of a point.

    Raises:
        ValueError: if there is no such density.
    """
    if name in PLANE:
        return dict.fromkeys(datasets.SPLITS, PLANE[name]), 2
    if name != "digits":
        raise ValueError(f"`density` must be one of {NAMES}. Received: density={name!r}")
    projected = _project_digits(data_dir)
    samplers: dict[str, Sampler] = {
        split: functools.partial(_resample, points) for split, points in projected.items()
    }
    return samplers, _PROJECTED


def _resample(points: Tensor, seed: Tensor, shape: Sequence[int]) -> Tensor:
    return tf.gather(points, random.integers(shape, seed, len(points)))


def _project_digits(data_dir: str | None) -> dict[str, Tensor]:
    """`[N, 8]` for each split."""
    dataset = datasets.load("digits", data_dir)
    flat = {s: dataset.split(s).images.reshape(-1, 64).astype("float64") for s in datasets.SPLITS}
    mean = flat["train"].mean(axis=0)
    _, scales, axes = np.linalg.svd(flat["train"] - mean, full_matrices=False)
    axes, scales = axes[:_PROJECTED], scales[:_PROJECTED] / len(flat["train"]) ** 0.5
    # The sign of an axis is up to the library.
    signs = np.sign(axes[np.arange(_PROJECTED), np.abs(axes).argmax(axis=1)])
    projection = (axes / (signs * scales)[:, None]).T
    return {
        split: tf.constant((pixels - mean) @ projection, tf.float32)
        for split, pixels in flat.items()
    }


def _direction(angle: Tensor) -> Tensor:
    return tf.stack([tf.cos(angle), tf.sin(angle)], axis=-1)
