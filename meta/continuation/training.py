"""Training of the solver, on spectra and measurements that never repeat."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.types import Array, Tensor, Tensors
from meta import random
from meta.continuation import kernels, spectra
from meta.continuation.problem import Basis
from meta.continuation.solver import QUANTILES

FINE = 4
"""Cells in which true spectra are made, for each cell of the solver's grid."""

RANK = 40
"""Singular values that a solver is trained on, at most."""

NOISE = (5e-6, 2e-2)
"""Levels of the noise, over the largest entry of the kernel."""

_LOWEST_NOISE = 3e-6
_EARLIER, _BARS = 0.3, 0.3
_AVERAGED = 300.0


class Operators(NamedTuple):
    """Kernels with the noise of unit level, in their singular bases, `M` of them.

    Attributes:
        singular_values: `[M, R]` float32, zero beyond the rank.
        v: `[M, W, R]`.
        fine: `[M, R, F]`: takes a spectrum on the fine grid to coefficients of the data.
    """

    singular_values: np.ndarray
    v: np.ndarray
    fine: np.ndarray

    @classmethod
    def stack(
        cls, operators: Iterable[tuple[Array, Array, Array]], rank: int = RANK
    ) -> "Operators":
        """From triples: a kernel on the solver's grid and on the fine one, and a covariance."""
        arrays = []
        for coarse, fine, noise in operators:
            basis = Basis.of(coarse, np.square(_LOWEST_NOISE) * noise)
            s, v, p = basis.singular_values[:rank], basis.v[:, :rank], basis.project[:rank]
            s, p = s * _LOWEST_NOISE, p * _LOWEST_NOISE
            absent = rank - len(s)
            arrays.append(
                (
                    np.pad(s, (0, absent)),
                    np.pad(v, ((0, 0), (0, absent))),
                    np.pad(p @ fine, ((0, absent), (0, 0))),
                )
            )
        return cls(*(np.stack(x).astype(np.float32) for x in zip(*arrays, strict=True)))


def operator(
    rng: np.random.Generator,
    num_frequencies: int,
    kernel: str | None = None,
    reach: float | None = None,
    num_times: int | None = None,
    noise: str | None = None,
) -> tuple[Array, Array, Array]:
    """A measurement at random: kernel, temperature, times and kind of noise.

    Args:
        rng: NumPy generator.
        num_frequencies: cells of the solver's grid.
        kernel, reach, num_times, noise: what is not to be random: kernel's name, beta times the
            largest frequency, number of times, kind of noise.
    """
    kernel = kernel or rng.choice(["fermionic", "bosonic", "laplace"], p=[0.7, 0.15, 0.15])
    reach = reach or np.exp(rng.uniform(np.log(16.0), np.log(640.0)))
    num_times = num_times or int(rng.choice([32, 64, 128, 256]))
    noise = noise or rng.choice(["white", "correlated", "uneven"])
    times = np.linspace(0.0, reach, num_times)
    coarse, fine = (
        kernels.matrix(kernel, times, kernels.edges(kernel, cells, 1.0), reach)
        for cells in (num_frequencies, FINE * num_frequencies)
    )
    scale = np.abs(coarse).max()
    return coarse / scale, fine / scale, covariance(rng, num_times, noise)


def covariance(rng: np.random.Generator, size: int, kind: str) -> Array:
    """Of the noise, of mean variance 1: `[size, size]`."""
    if kind == "white":
        return np.eye(size)
    if kind == "correlated":
        length = size * np.exp(rng.uniform(np.log(0.01), np.log(0.2)))
        distance = np.abs(np.arange(size)[:, None] - np.arange(size))
        return 0.999 * np.exp(-distance / length) + 0.001 * np.eye(size)
    slope = np.exp(rng.uniform(-1.5, 1.5) * np.linspace(-1.0, 1.0, size))
    return np.diag(np.square(slope) / np.mean(np.square(slope)))


def measure(
    operators: Operators, index: Tensor, weights: Tensor, noise: Tensor, seed: Tensor
) -> Tensors:
    """Measurements of spectra, as the solver's inputs.

    Args:
        operators: `Operators`, as tensors.
        index: `[O]` int32, which of them.
        weights: `[O, N, F]`, on the fine grid.
        noise: `[O, N]`, levels.
        seed: int32 `[2]`.
    """
    s, v, fine = (tf.gather(x, index) for x in operators)
    noise = noise[..., None]
    scaled = s[:, None] / noise
    clean = tf.matmul(weights, fine, transpose_b=True) / noise
    seen = tf.cast(s[:, None] > 0, tf.float32)
    data = clean + seen * random.normal(clean.shape, seed)
    return {"singular_values": scaled, "basis": v, "data": data}


def losses(answers: Tensor, bars: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the spectra after each iteration, and that of the error bars.

    The error of a spectrum is the relative distance `|p - q| / |q|` and ten times the mean
    distance of the cumulative spectra (the earth mover's distance in units of the grid). Bars
    are quantiles of the error at a frequency, given all that the solver knows.

    Args:
        answers: `[K, O, N, W]`.
        bars: `[O, N, W, Q]`.
        truth: `[O, N, W]`.

    Returns:
        `(errors, relative, pinball)`: `[K]`, `[K]` and a scalar, means over all spectra.
    """
    difference = answers - truth
    distance = tf.sqrt(tf.reduce_sum(tf.square(difference), -1) + 1e-12)
    relative = distance / tf.sqrt(tf.reduce_sum(tf.square(truth), -1))
    moved = tf.reduce_mean(tf.abs(tf.cumsum(difference, axis=-1)), -1)
    width = truth.shape[-1]
    missed = tf.stop_gradient(tf.abs(difference[-1]))[..., None] * width - bars * width
    quantiles = tf.constant(QUANTILES)
    pinball = tf.maximum(quantiles * missed, (quantiles - 1.0) * missed)
    relative, moved = (tf.reduce_mean(x, (1, 2)) for x in (relative, moved))
    return relative + 10.0 * moved, relative, tf.reduce_mean(pinball)


class Trainer(keras.Model):
    """A solver in training by `fit`: each step draws spectra and measurements of its own.

    What a step draws depends on the seed and the optimizer's iterations alone: a training that
    is resumed goes on as if nothing had happened.

    Args:
        solver: called as `solver(inputs, every=True)`, see `UnrolledSolver.call`.
        operators: `Operators`; each step takes some of them.
        kinds: O, how many.
        spectra_each: N, spectra for each of these.
        seed: non-negative int.
        noise: the range of the noise's level, which is log-uniform.
    """

    def __init__(
        self,
        solver: keras.Model,
        operators: Operators,
        kinds: int,
        spectra_each: int,
        seed: int = 0,
        noise: tuple[float, float] = NOISE,
    ) -> None:
        super().__init__()
        self.solver, self._seed, self._noise = solver, seed, noise
        self._shape = (kinds, spectra_each)
        self._operators = Operators(*(tf.constant(x) for x in operators))
        self.built = True

    def train_step(self, data: Any) -> Tensors:
        del data
        seed = random.fold_in(random.seed(self._seed), self.optimizer.iterations.value)
        inputs, truth = self.sample(seed)
        variables = self.solver.trainable_variables
        with tf.GradientTape() as tape:
            answers, bars = self.solver(inputs, every=True)
            errors, relative, pinball = losses(answers, bars, truth)
            loss = errors[-1] + _EARLIER * tf.reduce_mean(errors) + _BARS * pinball
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss, "error": relative[-1]}

    def sample(self, seed: Tensor) -> tuple[Tensors, Tensor]:
        """Measurements, as the solver's inputs, and their spectra `[O, N, W]`."""
        seeds = random.split(seed, 4)
        cells = self._operators.fine.shape[-1]
        weights = spectra.draw(seeds[0], math.prod(self._shape), cells)
        weights = tf.reshape(weights, (*self._shape, cells))
        index = random.integers(self._shape[:1], seeds[1], self._operators.v.shape[0])
        noise = tf.exp(random.uniform(self._shape, seeds[2], *map(math.log, self._noise)))
        inputs = measure(self._operators, index, weights, noise, seeds[3])
        return inputs, spectra.coarsen(weights, self._operators.v.shape[1])


def fit(
    trainer: Trainer,
    steps: int,
    learning_rate: float = 5e-3,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = 0,
) -> keras.callbacks.History:
    """Trains by Adam, with a warm-up, cosine decay, and in the end the weights' moving average.

    Args:
        trainer: `Trainer`.
        steps: of the optimizer.
        learning_rate: the highest.
        callbacks: Keras callbacks; an epoch is a hundredth of the training.
        verbose: as of `keras.Model.fit`.
    """
    each = max(1, steps // 100)
    warmup = max(1, steps // 50)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=learning_rate, warmup_steps=warmup
    )
    momentum = 1.0 - 1.0 / max(2.0, min(_AVERAGED, steps / 10.0))
    optimizer = keras.optimizers.Adam(
        schedule, global_clipnorm=1.0, use_ema=True, ema_momentum=momentum
    )
    trainer.compile(optimizer, jit_compile=True)
    nothing = tf.data.Dataset.from_tensors(0).repeat()
    return trainer.fit(
        nothing,
        steps_per_epoch=each,
        epochs=steps // each,
        callbacks=list(callbacks),
        verbose=verbose,
        shuffle=False,
    )
