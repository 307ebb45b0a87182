"""A learned optimizer for linear inverse problems whose answer is non-negative and of sum 1."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from lopt_keras.types import Tensor, Tensors
from lopt_keras.validation import check_integer

QUANTILES = (0.68, 0.95)
"""Shares of frequencies whose error the two error bars cover."""


@keras.saving.register_keras_serializable("lopt_keras")
class UnrolledSolver(keras.Model):
    """Finds p >= 0 of sum 1 from `b = s V'p + noise`, the noise white and of variance 1.

    K iterations. Each begins with convex surrogates, which are diagonal in the singular basis
    and well-conditioned whatever the kernel is: `x = argmin |s V'x - b|^2 / 2 + rho |x - z|^2 / 2
    = z + V (s (b - s V'z) / (s^2 + rho))`, for a few rho that are learned. A small convolutional
    network over the grid reads z and all x, keeps a memory of its own, and changes logits, of
    which the next z is the softmax. As s and V are inputs, a model serves any kernel, noise and
    temperature of its grid.

    Densities are in units of the flat spectrum's: x and z are `W p`.

    Args:
        num_frequencies: W, the cells of the grid; a multiple of `patch`.
        iterations: K.
        channels: of the network's memory, for each patch.
        patch: neighbouring cells that the network joins to one position.
        surrogates: number of rho in each iteration.
        shared: whether all iterations have the same network; each has biases and rho of its own.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the idea of well-conditioned convex surrogates is of Huang and Yang, arXiv
    2107.13265; the form is that of learned proximal methods (see Adler and Öktem 2018, arXiv
    1707.06474, for the memory).
    """

    def __init__(
        self,
        num_frequencies: int = 128,
        iterations: int = 8,
        channels: int = 32,
        patch: int = 4,
        surrogates: int = 4,
        shared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (
            ("num_frequencies", num_frequencies),
            ("iterations", iterations),
            ("channels", channels),
            ("patch", patch),
            ("surrogates", surrogates),
        ):
            check_integer(name, value, low=1)
        if num_frequencies % patch:
            raise ValueError(
                f"`num_frequencies` must be a multiple of `patch`, {patch}. "
                f"Received: num_frequencies={num_frequencies}"
            )
        self._config = {
            "num_frequencies": num_frequencies,
            "iterations": iterations,
            "channels": channels,
            "patch": patch,
            "surrogates": surrogates,
            "shared": shared,
        }
        self.num_frequencies, self.iterations = num_frequencies, iterations
        self._patch, self._surrogates, self._channels = patch, surrogates, channels
        self._log_rho = self.add_weight(
            (iterations, surrogates),
            lambda shape, dtype: ops.broadcast_to(
                ops.cast(np.linspace(np.log(1e-5), np.log(0.1), surrogates), dtype), shape
            ),
            name="log_rho",
        )
        self._remember = keras.layers.Dense(channels, name="remember")
        dilations = [4] if shared else [(1, 2, 4)[k % 3] for k in range(iterations)]
        self._steps = [
            ProximalStep(channels, patch, dilation, name=f"step_{k}")
            for k, dilation in enumerate(dilations)
        ]
        self._biases = self.add_weight((iterations, channels), "zeros", name="biases")
        self._bars = keras.layers.Dense(patch * len(QUANTILES), name="bars")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._config}

    def build(self, shapes: Any) -> None:
        patches, features = self.num_frequencies // self._patch, self._patch
        self._remember.build((None, patches, features * (self._surrogates + 2) + 2))
        for step in self._steps:
            step.build((None, patches, features * (1 + 2 * self._surrogates)))
        self._bars.build((None, patches, self._channels + self._patch))

    def call(self, inputs: Tensors, every: bool = False) -> tuple[Tensor, Tensor]:
        """The spectrum and its error bars.

        Args:
            inputs: dict: `singular_values` s and `data` b, `[O, N, R]`, for each of N
                measurements with each of O kernels, and `basis` V, `[O, W, R]`. s is in units
                of the noise; entries beyond the rank are zero.
            every: whether to return the spectra after all iterations.

        Returns:
            `(p, bars)`: p is `[O, N, W]` of sum 1, or `[K, O, N, W]`; bars is
            `[O, N, W, len(QUANTILES)]`, for p.
        """
        s = inputs["singular_values"] / self.num_frequencies
        b, v = inputs["data"], inputs["basis"]
        vt = ops.swapaxes(v, 1, 2)
        memory = self._remember(self._circumstances(s, v))
        logits, z = 0.0, ops.ones_like(ops.matmul(b, vt))
        answers = []
        for k in range(self.iterations):
            rho = ops.unstack(ops.exp(self._log_rho[k]))
            residual = s * (b - s * ops.matmul(z, v))
            views = [ops.matmul(residual / (ops.square(s) + r), vt) for r in rho]
            features = [compress(x) for x in (z, *views, *(x / (z + 0.5) for x in views))]
            step = self._steps[k % len(self._steps)]
            memory, change = step([self._patches(features), memory, self._biases[k]])
            logits = logits + ops.reshape(change, ops.shape(z))
            z = self.num_frequencies * ops.softmax(logits)
            answers.append(z / self.num_frequencies)
        last = ops.concatenate([memory, self._patches([compress(z)])], axis=-1)
        bars = ops.softplus(self._bars(last))
        bars = ops.reshape(bars, (*ops.shape(z), len(QUANTILES))) / self.num_frequencies
        return ops.stack(answers) if every else answers[-1], bars

    def _circumstances(self, s: Tensor, v: Tensor) -> Tensor:
        """What is known before the data: how well each frequency is resolved, and the noise."""
        vt = ops.square(ops.swapaxes(v, 1, 2))
        rho = ops.unstack(ops.exp(self._log_rho[0]))
        resolved = [ops.matmul(ops.square(s) / (ops.square(s) + r), vt) for r in rho]
        place = ops.linspace(-1.0, 1.0, self.num_frequencies)
        place = [ops.broadcast_to(x, ops.shape(resolved[0])) for x in (place, ops.square(place))]
        patches = self._patches([*resolved, *place])
        level = ops.log(ops.max(s, axis=-1) + 1e-6)[..., None, None] / 5.0
        level = ops.broadcast_to(level, (*ops.shape(patches)[:-1], 1))
        return ops.concatenate([patches, level, ops.square(level)], axis=-1)

    def _patches(self, features: Sequence[Tensor]) -> Tensor:
        """Values at each frequency, as features of each patch: `[O, N, P, patch * F]`."""
        shape = (*ops.shape(features[0])[:-1], self.num_frequencies // self._patch, self._patch)
        return ops.concatenate([ops.reshape(x, shape) for x in features], axis=-1)


class ProximalStep(keras.layers.Layer):
    """The network of an iteration: new memory and change of the logits."""

    def __init__(self, channels: int, patch: int, dilation: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dilations = (1, dilation)
        small = keras.initializers.VarianceScaling(0.01)
        self._read = keras.layers.Dense(channels, name="read")
        self._recall = keras.layers.Dense(channels, use_bias=False, name="recall")
        self._convolve = [
            keras.layers.Dense(channels, name="convolve_0"),
            keras.layers.Dense(channels, kernel_initializer=small, name="convolve_1"),
        ]
        self._write = keras.layers.Dense(patch, kernel_initializer=small, name="write")
        self._channels = channels

    def build(self, shape: Sequence[Any]) -> None:
        self._read.build(shape)
        wide = (*shape[:-1], self._channels)
        self._recall.build(wide)
        for layer in self._convolve:
            layer.build((*shape[:-1], 3 * self._channels))
        self._write.build((*shape[:-1], self._channels + shape[-1]))

    def call(self, inputs: Any) -> tuple[Tensor, Tensor]:
        features, memory, bias = inputs
        x = ops.relu(self._read(features) + self._recall(memory) + bias)
        x = ops.relu(self._convolve[0](neighbours(x, self._dilations[0])))
        memory = memory + self._convolve[1](neighbours(x, self._dilations[1]))
        return memory, self._write(ops.concatenate([ops.relu(memory), features], axis=-1))


def neighbours(x: Tensor, dilation: int) -> Tensor:
    """Each position with those at a distance to its left and right: a convolution's input."""
    zeros = ops.zeros_like(x[..., :dilation, :])
    left = ops.concatenate([zeros, x[..., :-dilation, :]], axis=-2)
    right = ops.concatenate([x[..., dilation:, :], zeros], axis=-2)
    return ops.concatenate([left, x, right], axis=-1)


def compress(x: Tensor) -> Tensor:
    """Of the size of x where that is small, of its root where it is large."""
    return x * ops.rsqrt(1.0 + ops.abs(x))
