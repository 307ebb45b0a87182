"""Normalizing flows: densities as invertible maps to a normal one."""

import abc
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Array, Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import base, ranges
from meta.tasks.families import densities, noise
from meta.tasks.networks import layers

_LAST_LAYER_SCALE = 0.1
_LARGEST_LOG_SCALE = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Flow(base.Task):
    """Density estimation by a normalizing flow; the loss is in nats for each dimension.

    A point x becomes `x * exp(s(x)) + t(x)`, several times over; the density is that of a
    standard normal of the outcome, times the Jacobian determinant. An MLP gives s and t,
    some of its weights masked away so that the Jacobian is triangular: its determinant is
    then `exp(sum s)`. Log-scales are `2 tanh(. / 2)` of the MLP's outputs: they are
    bounded, so that no step can make the density overflow.

    Weights start Glorot-uniform, those of the last layer of each MLP a tenth of that;
    biases start at zero.

    A subclass says what is masked: `masks`.

    Args:
        density: one of `densities.NAMES`.
        num_layers: maps, one after the other.
        hidden_units: units of each hidden layer of a map's MLP.
        activation: any Keras activation by name.
        batch_size: points in a batch.
        init_scale: multiplies the initial weights.
        noise: standard deviation of noise on the points, of all splits: part of the density.
        data_dir: where datasets are prepared; see `datasets.load`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    architecture: ClassVar = {
        "density": ranges.Choice(*densities.NAMES),
        "num_layers": ranges.Choice(2, 3, 4),
        "hidden_units": ranges.Layers(1, 2, ranges.Size(8, 32)),
        "activation": ranges.Choice("relu", "tanh", "elu"),
        "batch_size": ranges.Size(16, 128),
    }
    setting: ClassVar = {
        "init_scale": ranges.LogUniform(0.3, 3.0),
        "noise": ranges.LogUniform(0.05, 0.3),
    }
    large: ClassVar = {
        "num_layers": ranges.Choice(6),
        "hidden_units": ranges.Layers(2, 2, ranges.Size(64, 64)),
    }

    loss_floor: ClassVar = None
    # Of the fields of an instance.
    dimension: ClassVar[int]
    _samplers: ClassVar[dict[str, densities.Sampler]]
    _masks: ClassVar[list[list[Array]]]

    density: str = "two_moons"
    num_layers: int = 4
    hidden_units: tuple[int, ...] = (16,)
    activation: str = "relu"
    batch_size: int = 64
    init_scale: float = 1.0
    noise: float = 0.1
    data_dir: str | None = base.elsewhere()

    def __post_init__(self) -> None:
        check_integer("num_layers", self.num_layers, low=1)
        check_integer("batch_size", self.batch_size, low=1)
        for units in self.hidden_units:
            check_integer("hidden_units", units, low=1)
        layers.activation(self.activation)
        super().__post_init__()
        samplers, dimension = densities.splits(self.density, self.data_dir)
        object.__setattr__(self, "_samplers", samplers)
        object.__setattr__(self, "dimension", dimension)
        masks = [
            [mask.astype("float32") for mask in self.masks(layer)]
            for layer in range(self.num_layers)
        ]
        object.__setattr__(self, "_masks", masks)

    @abc.abstractmethod
    def masks(self, layer: int) -> list[Array]:
        """Which weights of a map's MLP are kept.

        Args:
            layer: number of the map.

        Returns:
            List of boolean arrays: one for each weight matrix, `[inputs, outputs]`, but
            `[inputs, dimension]` for the last, whose s and t are masked alike; and
            `[dimension]`, which coordinates the map changes at all.
        """

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        sizes = [self.dimension, *self.hidden_units, 2 * self.dimension]
        params = []
        for layer in range(self.num_layers):
            own_seed = random.fold_in(seed, layer)
            shapes = list(itertools.pairwise(sizes))
            params += layers.init_weights(own_seed, num, shapes, setting["init_scale"])
            params[-2] *= _LAST_LAYER_SCALE
        return params

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        """Points, `[num, batch_size, dimension]`."""
        seeds = random.split(seed, 2)
        points = self._samplers[split](seeds[0], (num, self.batch_size))
        return noise.normal(points, setting["noise"], seeds[1])

    def transform(self, params: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """What points become, and the logarithm of the Jacobian determinant.

        Args:
            params: as `init` returned them.
            x: `[P, B, dimension]`.

        Returns:
            `[P, B, dimension]` and `[P, B]`.
        """
        length = len(params) // self.num_layers
        total = 0.0
        for layer in range(self.num_layers):
            own = params[layer * length : (layer + 1) * length]
            log_scale, shift = self._conditioner(x, own, self._masks[layer])
            x = x * tf.exp(log_scale) + shift
            total += tf.reduce_sum(log_scale, axis=-1)
        return x, total

    def _conditioner(
        self, x: Tensor, params: Sequence[Tensor], masks: Sequence[Array]
    ) -> tuple[Tensor, Tensor]:
        """s and t of one map: `[P, B, dimension]` both."""
        *hidden_masks, last_mask, changed = masks
        weight_masks = [*hidden_masks, np.concatenate([last_mask, last_mask], axis=1)]
        masked = list(params)
        masked[::2] = [w * m for w, m in zip(params[::2], weight_masks, strict=True)]
        outputs = layers.mlp(x, masked, layers.activation(self.activation))
        raw, shift = tf.split(outputs * np.concatenate([changed, changed]), 2, axis=-1)
        return _LARGEST_LOG_SCALE * tf.tanh(raw / _LARGEST_LOG_SCALE), shift

    def log_density(self, params: Sequence[Tensor], x: Tensor) -> Tensor:
        """Of points `[P, B, dimension]`: `[P, B]`, in nats."""
        z, log_determinant = self.transform(params, x)
        normal = -0.5 * tf.reduce_sum(tf.square(z), axis=-1)
        return normal - 0.5 * self.dimension * math.log(2 * math.pi) + log_determinant

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        return -tf.reduce_mean(self.log_density(params, data), axis=1) / self.dimension


@dataclasses.dataclass(frozen=True, eq=False)
class RealNVP(Flow):
    """A flow of coupling layers: half of the coordinates are scaled and shifted by the others.

    Layers take turns in which half, the even or the odd coordinates, stays as it is.

    Args:
        density, num_layers, hidden_units, activation, batch_size, init_scale, noise,
            data_dir: as for `Flow`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Dinh et al., arXiv 1605.08803, section 3; without multiple scales and batch
    normalization.
    """

    name: ClassVar = "real_nvp"

    def masks(self, layer: int) -> list[Array]:
        read = np.arange(self.dimension) % 2 == layer % 2
        sizes = [self.dimension, *self.hidden_units, self.dimension]
        masks = [np.ones(shape, bool) for shape in itertools.pairwise(sizes)]
        masks[0] &= read[:, None]
        return [*masks, ~read]


@dataclasses.dataclass(frozen=True, eq=False)
class MAF(Flow):
    """A masked autoregressive flow: each coordinate is scaled and shifted by those before it.

    Layers take turns in the order of coordinates, forward and backward.

    Args:
        density, num_layers, hidden_units, activation, batch_size, init_scale, noise,
            data_dir: as for `Flow`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: Papamakarios et al., arXiv 1705.07057, section 3; without batch normalization.
    Masks are those of Germain et al., arXiv 1502.03509, section 4, with hidden degrees
    that count up instead of random ones.
    """

    name: ClassVar = "maf"

    def masks(self, layer: int) -> list[Array]:
        degrees = np.arange(self.dimension)
        if layer % 2:
            degrees = degrees[::-1]
        hidden = [np.arange(units) % max(self.dimension - 1, 1) for units in self.hidden_units]
        pairs = itertools.pairwise([degrees, *hidden])
        masks = [before[:, None] <= after for before, after in pairs]
        # A coordinate may not see itself.
        masks.append([degrees, *hidden][-1][:, None] < degrees)
        return [*masks, np.ones(self.dimension, bool)]
