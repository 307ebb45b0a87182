"""Spectra from noisy correlation functions in imaginary time."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lopt_keras.types import Array, Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import base, ranges
from meta.tasks.networks import layers

MAX_FREQUENCY = 8.0
"""Spectra are between minus this and this."""

_MAX_PEAKS = 3
_CENTRES = 5.0
_WIDTHS = (0.5, 1.5)


@dataclasses.dataclass(frozen=True, eq=False)
class AnalyticContinuation(base.Task):
    """An ill-conditioned inverse problem: which spectrum A(w) belongs to a noisy G(tau)?

    `G(tau) = integral K(tau, w) A(w) dw + noise`, `K = exp(-tau w) / (1 + exp(-beta w))`,
    for tau in [0, beta], with A >= 0 of integral 1 on [-8, 8]. The parameters are logits,
    of which the softmax is the weight of A in each cell of a grid of frequencies.

    The losses of the splits differ in kind. That of training is all that an optimizer
    may know: the mean square of `(K A - G) / noise`, over one plus what it is for a
    flat spectrum. It is the same in each step, as there is one measurement of G. That of
    validation and test is the error of the answer: the square of the distance to the true
    spectrum, over the square of that one's norm. Who follows the first too far fits noise.

    A true spectrum is a mixture of one to three Gaussians with centres uniform in
    [-5, 5], widths 0.5 to 1.5 times `width` (standard deviation), and weights uniform before
    they are normalised.

    Args:
        num_frequencies: cells of the grid of w.
        num_times: values of tau, from 0 to beta inclusive.
        beta: inverse temperature.
        noise: standard deviation of the noise on G, which lies between 0 and 1.
        width: scale of the widths of Gaussians.
        start_scale: standard deviation of the logits at the start.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Source: the problem of Huang and Yang, arXiv 2107.13265; parametrisation, losses and the
    distribution of spectra are ours.
    """

    name: ClassVar = "analytic_continuation"
    architecture: ClassVar = {
        "num_frequencies": ranges.Size(32, 128),
        "num_times": ranges.Size(16, 64),
    }
    setting: ClassVar = {
        "beta": ranges.LogUniform(3.0, 30.0),
        "noise": ranges.LogUniform(1e-4, 1e-2),
        "width": ranges.LogUniform(0.4, 1.5),
        "start_scale": ranges.LogUniform(0.01, 0.3),
    }
    large: ClassVar = {"num_frequencies": ranges.Choice(1024), "num_times": ranges.Choice(128)}

    num_frequencies: int = 64
    num_times: int = 32
    beta: float = 10.0
    noise: float = 1e-3
    width: float = 0.8
    start_scale: float = 0.01

    def __post_init__(self) -> None:
        check_integer("num_frequencies", self.num_frequencies, low=2)
        check_integer("num_times", self.num_times, low=2)
        super().__post_init__()
        for name in ("beta", "noise", "width"):
            if np.min(getattr(self, name)) <= 0:
                raise ValueError(
                    f"`{name}` must be positive. Received: {name}={getattr(self, name)!r}"
                )

    @property
    def frequencies(self) -> Array:
        """The middle of each cell of the grid of w: `[num_frequencies]` float32."""
        edges = np.linspace(-MAX_FREQUENCY, MAX_FREQUENCY, self.num_frequencies + 1)
        return (0.5 * (edges[1:] + edges[:-1])).astype("float32")

    def draw(self, seed: Tensor, num: int, variant: Tensor | None = None) -> dict[str, Any]:
        """As `Task.draw`, with the problem itself.

        Returns:
            The dict with, besides, `kernel` `[num, num_times, num_frequencies]`,
            `spectrum` `[num, num_frequencies]`, the weights of the true spectrum,
            `correlation` `[num, num_times]`, the noisy G, and `scale` `[num]`, by which
            the training loss is divided.
        """
        setting = super().draw(seed, num, variant)
        seeds = random.split(seed, 2)
        times = np.linspace(0.0, 1.0, self.num_times).astype("float32")
        times = layers.per_particle(setting["beta"], 2) * times
        kernel = fermionic_kernel(times, self.frequencies, setting["beta"])
        spectrum = self._draw_spectrum(seeds[0], setting["width"])
        noise = layers.per_particle(setting["noise"], 2)
        correlation = tf.linalg.matvec(kernel, spectrum)
        correlation += noise * random.normal(correlation.shape, seeds[1])
        flat = tf.ones_like(spectrum) / self.num_frequencies
        residual = (tf.linalg.matvec(kernel, flat) - correlation) / noise
        return {
            **setting,
            "kernel": kernel,
            "spectrum": spectrum,
            "correlation": correlation,
            "scale": 1.0 + tf.reduce_mean(tf.square(residual), axis=1),
        }

    def _draw_spectrum(self, seed: Tensor, width: Tensor) -> Tensor:
        """`[num, num_frequencies]`, of sum 1."""
        shape = (width.shape[0], _MAX_PEAKS)
        seeds = random.split(seed, 4)
        centres = random.uniform(shape, seeds[0], -_CENTRES, _CENTRES)
        widths = width[:, None] * random.uniform(shape, seeds[1], *_WIDTHS)
        count = 1 + random.integers((shape[0], 1), seeds[2], _MAX_PEAKS)
        there = tf.cast(tf.range(_MAX_PEAKS) < count, tf.float32)
        # A Gaussian's height is its weight over its width.
        heights = there * random.uniform(shape, seeds[3]) / widths
        distances = (self.frequencies - centres[..., None]) / widths[..., None]
        peaks = heights[..., None] * tf.exp(-0.5 * tf.square(distances))
        total = tf.reduce_sum(peaks, axis=1)
        return total / tf.reduce_sum(total, axis=1, keepdims=True)

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        start = random.normal((num, self.num_frequencies), seed)
        return [layers.per_particle(setting["start_scale"], 2) * start]

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        """What the split's loss compares with, and which loss it is.

        Returns:
            Dict: `correlation` `[num, num_times]` and `spectrum` `[num, num_frequencies]`,
            the one that the split does not show being zero; `shows_spectrum` `[num]`
            float32, 0 for training and 1 for validation and test.
        """
        shown, hidden = (
            ("correlation", "spectrum")
            if split == "train"
            else (
                "spectrum",
                "correlation",
            )
        )
        return {
            shown: setting[shown],
            hidden: tf.zeros_like(setting[hidden]),
            "shows_spectrum": tf.fill([num], float(split != "train")),
        }

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        answer = tf.nn.softmax(params[0])
        fitted = tf.linalg.matvec(setting["kernel"], answer)
        residual = (fitted - data["correlation"]) / layers.per_particle(setting["noise"], 2)
        misfit = tf.reduce_mean(tf.square(residual), axis=1) / setting["scale"]
        error = spectral_error(answer, setting["spectrum"])
        return tf.where(data["shows_spectrum"] > 0.5, error, misfit)


def spectral_error(answer: Tensor, spectrum: Tensor) -> Tensor:
    """`|answer - spectrum|^2 / |spectrum|^2` over the last axis."""
    distance = tf.reduce_sum(tf.square(answer - spectrum), axis=-1)
    return distance / tf.reduce_sum(tf.square(spectrum), axis=-1)


def fermionic_kernel(times: Tensor, frequencies: Tensor, beta: Tensor) -> Tensor:
    """`exp(-tau w) / (1 + exp(-beta w))`, without overflow for negative w.

    Args:
        times: `[num, T]`, tau in [0, beta].
        frequencies: `[W]`.
        beta: `[num]`.

    Returns:
        `[num, T, W]`, in (0, 1).
    """
    by_beta = beta[:, None, None] * frequencies
    # For negative w, both are multiplied by exp(beta w): the largest exponent is zero.
    exponent = tf.minimum(by_beta, 0.0) - times[..., None] * frequencies
    return tf.exp(exponent) / (1.0 + tf.exp(-tf.abs(by_beta)))
