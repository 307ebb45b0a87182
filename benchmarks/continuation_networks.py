"""The unrolled solver against fully connected and convolutional networks, at equal training time.

python benchmarks/continuation_networks.py --seconds=60 --out_dir=benchmarks/results/continuation

All are trained by the same code on the same kind of data for the same processor time: the
fermionic kernel, beta times the largest frequency 80, 64 times, white noise of 5e-6 to 2e-2. A
fully connected network reads the data in the kernel's singular basis, compressed, and the noise
level, and has two hidden layers. A convolutional one reads one surrogate for each of four
rho, made from the data alone, and has eight convolutions over the grid in patches, as many as the
solver has iterations. The softmax at the end is the same, so are the error bars.
"""

import json
import os
import time

import keras
import matplotlib
import numpy as np
from absl import app, flags, logging
from keras import ops

from meta import provenance, smoke
from meta.continuation import evaluation, solving, training
from meta.continuation.problem import Problem
from meta.continuation.solver import QUANTILES, UnrolledSolver, compress, neighbours

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/continuation", "For the results.")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Processor time of each training.", 0.0)
_SPECTRA = flags.DEFINE_integer("spectra", 512, "To compare on, at each noise level.", 8)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 5e-3, "The highest. Of a network trained with several, the best stays.", 0.0
)
_ONLY = flags.DEFINE_list("only", [], "Names of networks; others stay in the results.")
smoke.define(seconds=0.0, spectra=8, only=["solver 8", "fully connected 32", "convolutional 16"])

_FREQUENCIES, _BATCH, _PATCH = 128, 128, 4
_TRIAL_STEPS = 60
_SEED = 0


class _Direct(keras.Model):
    """A network without iterations: what it has in common with others."""

    num_frequencies = _FREQUENCIES

    def __init__(self, outputs):
        super().__init__()
        self._answer = keras.layers.Dense(outputs, name="answer")
        self._bars = keras.layers.Dense(outputs * len(QUANTILES), name="bars")

    def call(self, inputs, every=False):
        hidden = self.hidden(inputs)
        shape = (*ops.shape(inputs["data"])[:2], _FREQUENCIES)
        p = ops.softmax(ops.reshape(self._answer(hidden), shape))
        bars = ops.softplus(self._bars(hidden)) / _FREQUENCIES
        bars = ops.reshape(bars, (*shape, len(QUANTILES)))
        return (ops.expand_dims(p, 0) if every else p), bars


class FullyConnected(_Direct):
    """Two hidden layers of one width."""

    def __init__(self, width):
        super().__init__(_FREQUENCIES)
        self._hidden = [keras.layers.Dense(width, "relu", name=f"hidden_{i}") for i in range(2)]

    def hidden(self, inputs):
        s, b = (as_wide(inputs[name]) for name in ("singular_values", "data"))
        # What the data say of each coefficient of the spectrum, as far as they do.
        x = compress(4.0 * _FREQUENCIES**0.5 * s * b / (ops.square(s) + 1.0))
        level = ops.log(ops.max(s, axis=-1, keepdims=True))
        x = ops.concatenate([x, level / 5.0, ops.square(level) / 50.0], axis=-1)
        for layer in self._hidden:
            x = layer(x)
        return x


class Convolutional(_Direct):
    """Eight residual convolutions over patches of the grid."""

    def __init__(self, channels):
        super().__init__(_PATCH)
        self._first = keras.layers.Dense(channels, name="first")
        small = keras.initializers.VarianceScaling(0.1)
        self._hidden = [
            keras.layers.Dense(channels, kernel_initializer=small, name=f"layer_{i}")
            for i in range(8)
        ]

    def hidden(self, inputs):
        s, b = inputs["singular_values"] / _FREQUENCIES, inputs["data"]
        vt = ops.swapaxes(inputs["basis"], 1, 2)
        views = [
            compress(ops.matmul(s * b / (ops.square(s) + rho), vt))
            for rho in np.geomspace(1e-5, 0.1, 4)
        ]
        views.append(ops.zeros_like(views[0]) + ops.log(ops.max(s, axis=-1, keepdims=True)) / 5.0)
        shape = (*ops.shape(views[0])[:-1], _FREQUENCIES // _PATCH, _PATCH)
        x = self._first(ops.concatenate([ops.reshape(v, shape) for v in views], axis=-1))
        for layer, distance in zip(self._hidden, [1, 2, 4, 8] * 2, strict=True):
            x = x + layer(neighbours(ops.relu(x), distance))
        return ops.relu(x)


def as_wide(x):
    """Of `training.RANK` numbers, zeros behind."""
    zeros = ops.zeros((*ops.shape(x)[:-1], training.RANK))
    return ops.reshape(ops.concatenate([x, zeros], axis=-1)[..., : training.RANK], ops.shape(zeros))


NETWORKS = {
    "solver 8": lambda: UnrolledSolver(channels=8, shared=False),
    "shared solver 16": lambda: UnrolledSolver(channels=16),
    "solver 32": lambda: UnrolledSolver(channels=32, shared=False),
    "fully connected 32": lambda: FullyConnected(32),
    "fully connected 128": lambda: FullyConnected(128),
    "fully connected 512": lambda: FullyConnected(512),
    "fully connected 2048": lambda: FullyConnected(2048),
    "convolutional 16": lambda: Convolutional(16),
    "convolutional 64": lambda: Convolutional(64),
}


class _Clock(keras.callbacks.Callback):
    """Processor time from the end of the first epoch, which compiles, to that of the last."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.begin = time.process_time()
        self.seconds = time.process_time() - self.begin


def trained(make, operators):
    """A network, trained for `--seconds`, and the number of steps."""

    def trainer():
        keras.utils.set_random_seed(_SEED)
        return training.Trainer(make(), operators, 1, _BATCH, _SEED)

    def built():
        own = trainer()
        own.solver(own.sample(training.random.seed(0))[0])
        return own

    clock = _Clock()
    training.fit(built(), _TRIAL_STEPS, _LEARNING_RATE.value, [clock])
    steps = max(10, int(_SECONDS.value * (_TRIAL_STEPS - 1) / clock.seconds))
    own = built()
    training.fit(own, steps, _LEARNING_RATE.value, [clock])
    return own.solver, steps, clock.seconds


def evaluate(network):
    """Median errors and coverage at each noise level, and the time for one spectrum of 512."""
    rows = {}
    for level in evaluation.LEVELS:
        test = evaluation.make(_SPECTRA.value, level, _FREQUENCIES, 1002)
        inputs = solving.inputs(Problem.all_of(test.kernel, test.correlations, test.noise))
        begin = time.process_time()
        weights, bars = (np.asarray(x[0], float) for x in solving.run(network, inputs))
        rows[f"{level:g}"] = {
            **evaluation.figures(weights, test.truth),
            "coverage": evaluation.coverage(weights, bars, test.truth).tolist(),
        }
        begin = time.process_time()
        solving.run(network, inputs)[0].numpy()
        seconds = (time.process_time() - begin) / _SPECTRA.value
    return rows, seconds


def mean_error(result):
    """Over the noise levels, of the medians."""
    return np.mean([row["relative_error"][0] for row in result["levels"].values()])


def draw(results, file):
    """Error against parameters, an axis for each noise level."""
    levels = [f"{level:g}" for level in evaluation.LEVELS]
    figure, axes = plt.subplots(1, len(levels), figsize=(15, 4), layout="constrained")
    kinds = sorted({name.rpartition(" ")[0] for name in results})
    for axis, level in zip(axes, levels, strict=True):
        for j, kind in enumerate(kinds):
            own = [r for name, r in results.items() if name.rpartition(" ")[0] == kind]
            own.sort(key=lambda r: r["parameters"])
            errors = [r["levels"][level]["relative_error"][0] for r in own]
            axis.plot([r["parameters"] for r in own], errors, "o-", color=f"C{j}", label=kind)
        axis.set(xscale="log", xlabel="parameters", title=f"noise {level}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative error of the spectrum, median")
    axes[0].legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if unknown := set(_ONLY.value) - set(NETWORKS):
        raise app.UsageError(f"`--only` must be some of {list(NETWORKS)}. Received: {unknown}")
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    rng = np.random.default_rng(0)
    one = training.operator(rng, _FREQUENCIES, "fermionic", 80.0, 64, "white")
    operators = training.Operators.stack([one])
    file = os.path.join(_OUT_DIR.value, "networks.json")
    results = {}
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f:
            results = json.load(f)
        results.pop("made_by", None)
    for name in _ONLY.value or NETWORKS:
        network, steps, seconds = trained(NETWORKS[name], operators)
        levels, alone = evaluate(network)
        result = {
            "parameters": network.count_params(),
            "learning_rate": _LEARNING_RATE.value,
            "steps": steps,
            "seconds": seconds,
            "seconds_for_one_of_a_batch": alone,
            "levels": levels,
        }
        errors = [round(row["relative_error"][0], 3) for row in levels.values()]
        print(
            f"{name:>28}: {network.count_params()} parameters, {steps} steps, {errors}", flush=True
        )
        if name not in results or mean_error(result) < mean_error(results[name]):
            results[name] = result
        provenance.write_results(file, results)
        keras.backend.clear_session()
    draw(results, os.path.join(_OUT_DIR.value, "networks.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
