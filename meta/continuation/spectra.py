"""Spectra sampled at random: sums of peaks of many shapes, with gaps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import tensorflow as tf

from lopt_keras.types import Tensor
from meta import random

_CENTRES = 0.8
_WIDTHS = (0.03, 0.4)
_MAX_PEAKS = 3
_GAP_SHARE = 0.25
_GAP_HALF_WIDTHS = (0.02, 0.25)
_GAP_CENTRES = 0.3

Density: TypeAlias = Callable[[Tensor], Tensor]
"""The shape of a peak at zero."""


def _gaussian(x: Tensor) -> Tensor:
    return 0.4 * tf.exp(-0.5 * tf.square(x))


def _lorentzian(x: Tensor) -> Tensor:
    return 0.53 / (1.0 + tf.square(x / 0.6))


def _box(x: Tensor) -> Tensor:
    return tf.where(tf.abs(x) < 1.73, 0.29, 0.0)


def _semicircle(x: Tensor) -> Tensor:
    return 0.16 * tf.sqrt(tf.nn.relu(4.0 - tf.square(x)))


def _edge(x: Tensor) -> Tensor:
    return tf.where(x > 0.0, tf.exp(-tf.abs(x)), 0.0)


def _triangle(x: Tensor) -> Tensor:
    return 0.41 * tf.nn.relu(1.0 - tf.abs(x) / 2.45)


def _log_normal(x: Tensor) -> Tensor:
    x = tf.maximum(1.5 + x, 1e-3)
    return 0.8 / x * tf.exp(-2.0 * tf.square(tf.math.log(x / 1.5)))


def _arcsine(x: Tensor) -> Tensor:
    return tf.where(tf.abs(x) < 1.41, 0.32 * tf.math.rsqrt(tf.abs(2.0 - tf.square(x)) + 1e-2), 0.0)


def _superconductor(x: Tensor) -> Tensor:
    x = tf.abs(x)
    inside = (x > 1.0) & (x < 2.5)
    return tf.where(inside, 0.22 * x * tf.math.rsqrt(tf.abs(tf.square(x) - 1.0) + 1e-2), 0.0)


FAMILIES = {
    "gaussian": _gaussian,
    "lorentzian": _lorentzian,
    "box": _box,
    "semicircle": _semicircle,
    "edge": _edge,
}
"""The densities of the peaks of training, of about unit area and width."""

UNSEEN = {
    "triangle": _triangle,
    "log_normal": _log_normal,
    "arcsine": _arcsine,
    "superconductor": _superconductor,
}
"""Those of peaks that no training sees: an edge with a kink, a skewed peak, the density of states
of a chain and that of a superconductor."""


def draw(
    seed: Tensor, num: int, num_cells: int, families: Mapping[str, Density] | None = None
) -> Tensor:
    """Random spectra, as their weights in equal cells of the interval [-1, 1].

    A spectrum is a sum of one to three peaks. Their shapes are of the families, some mirrored,
    centres uniform in [-0.8, 0.8], widths log-uniform in [0.03, 0.4], weights exponential. A
    quarter of the spectra has a gap: nothing within 0.02 to 0.25 of a frequency within 0.3 of
    the middle. What is outside of the interval is cut off.

    Args:
        seed: int32 `[2]`, see `meta.random`.
        num: spectra.
        num_cells: cells.
        families: dict from name to density; `FAMILIES` by default.

    Returns:
        `[num, num_cells]` float32, non-negative, of sum 1.
    """
    densities = list((FAMILIES if families is None else families).values())
    seeds = random.split(seed, 9)
    shape = (num, _MAX_PEAKS)
    places = tf.linspace(-1.0 + 1.0 / num_cells, 1.0 - 1.0 / num_cells, num_cells)
    centres = random.uniform(shape, seeds[0], -_CENTRES, _CENTRES)
    widths = tf.exp(random.uniform(shape, seeds[1], *map(math.log, _WIDTHS)))
    count = 1 + random.integers((num, 1), seeds[2], _MAX_PEAKS)
    weights = -tf.math.log(random.uniform(shape, seeds[3]))
    weights *= tf.cast(tf.range(_MAX_PEAKS) < count, tf.float32)
    mirror = tf.sign(random.uniform(shape, seeds[4], -1.0, 1.0))
    family = random.integers(shape, seeds[5], len(densities))
    x = (places - centres[..., None]) * (mirror / widths)[..., None]
    peaks = tf.zeros_like(x)
    for i, density in enumerate(densities):
        peaks = tf.where((family == i)[..., None], density(x), peaks)
    total = tf.reduce_sum((weights / widths)[..., None] * peaks, axis=1)
    total = _with_gaps(total, places, seeds[6:])
    return total / tf.reduce_sum(total, axis=1, keepdims=True)


def _with_gaps(density: Tensor, places: Tensor, seeds: Sequence[Tensor]) -> Tensor:
    """The density, in some rows without what is in an interval."""
    num = density.shape[0]
    half_width = random.uniform((num, 1), seeds[0], *_GAP_HALF_WIDTHS)
    centre = random.uniform((num, 1), seeds[1], -_GAP_CENTRES, _GAP_CENTRES)
    rest = tf.where(tf.abs(places - centre) < half_width, 0.0, density)
    left, total = (tf.reduce_sum(x, axis=1, keepdims=True) for x in (rest, density))
    has_gap = random.uniform((num, 1), seeds[2]) < _GAP_SHARE
    # Hardly anything left is no spectrum with a gap.
    return tf.where(has_gap & (left > 0.1 * total), rest, density)


def coarsen(weights: Tensor, num_cells: int) -> Tensor:
    """The same spectra in fewer cells, each a whole number of the old ones: `[..., num_cells]`."""
    factor = weights.shape[-1] // num_cells
    return tf.reduce_sum(tf.reshape(weights, (*weights.shape[:-1], num_cells, factor)), axis=-1)
