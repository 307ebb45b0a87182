"""Time of a step under any backend, on a processor or a GPU: the default's against Adam's.

KERAS_BACKEND=jax python benchmarks/performance/backend_step.py

Under JAX a step is `stateless_apply`, compiled; its old values are given away, as in `fit`. Under
torch it is `apply`, not compiled. JAX and torch need no TensorFlow beside them: nothing of
meta-training is imported.
"""

import json
import math
import os
import subprocess
import sys
import time

import keras
import models
import numpy as np
from absl import app, flags

from lopt_keras import LearnedOptimizer

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODELS = flags.DEFINE_list("models", ["mlp", "resnet50"], f"Some of {list(models.SHAPES)}.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 30, "Timings of each step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps in each timing.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "Run all of it at its smallest size.")
_COMMIT = flags.DEFINE_string("commit", None, "Of the code, where it is no git checkout.")

OPTIMIZERS = {
    "Adam": keras.optimizers.Adam,
    "default": lambda: LearnedOptimizer(None, rule="direction_mixture"),
}
"""Of the default the rule only: what it has learned changes no time."""


def stepper(optimizer, variables, gradients):
    """A function that takes so many steps, and ends when they are taken."""
    optimizer.build(variables)
    return STEPPERS[keras.backend.backend()](optimizer, variables, gradients)


def _tensorflow_stepper(optimizer, variables, gradients):
    import tensorflow as tf

    def apply(gradients):
        return optimizer.apply(gradients, variables)

    # A learned step is a compiled program by itself.
    compiled = not isinstance(optimizer, LearnedOptimizer)
    apply = tf.function(apply, jit_compile=compiled, autograph=False)

    def take(steps):
        for _ in range(steps):
            apply(gradients)
        variables[0].value[:1, :1].numpy()  # On an accelerator, a call returns before it is done.

    return take


def _jax_stepper(optimizer, variables, gradients):
    import jax

    def apply(state, gradients):
        return optimizer.stateless_apply(state[1], gradients, state[0])

    compiled = jax.jit(apply, donate_argnums=0)
    # Copies: variables that start with the same value may share its memory.
    state = [[jax.numpy.copy(v.value) for v in vs] for vs in (variables, optimizer.variables)]

    def take(steps):
        nonlocal state
        for _ in range(steps):
            state = compiled(state, gradients)
        jax.block_until_ready(state)

    return take


def _torch_stepper(optimizer, variables, gradients):
    import torch

    def take(steps):
        with torch.no_grad():
            for _ in range(steps):
                optimizer.apply(gradients, variables)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return take


STEPPERS = {"jax": _jax_stepper, "tensorflow": _tensorflow_stepper, "torch": _torch_stepper}


def measure(shapes, repetitions):
    """Of each optimizer the seconds of its first step, and nanoseconds a parameter: dict."""
    count = sum(math.prod(shape) for shape in shapes)
    steps, found = {}, {}
    for name, make in OPTIMIZERS.items():
        start = time.perf_counter()
        steps[name] = stepper(make(), *models.variables(shapes))
        steps[name](1)
        found[name] = {"first_step_seconds": round(time.perf_counter() - start, 2)}
    times = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, take in steps.items():
            start = time.perf_counter_ns()
            take(_STEPS.value)
            times[name].append((time.perf_counter_ns() - start) / _STEPS.value)
    for name, values in times.items():
        low, median, high = np.percentile(values, (25, 50, 75))
        found[name] |= {
            "milliseconds": round(float(median) / 1e6, 3),
            "quartiles": [round(float(x) / 1e6, 3) for x in (low, high)],
            "nanoseconds_per_parameter": round(float(median) / count, 3),
        }
        print(name, found[name], flush=True)
    return {"parameters": count, "tensors": len(shapes), "optimizers": found}


def device():
    """The name of what the steps run on."""
    if keras.backend.backend() == "jax":
        import jax

        kind = jax.devices()[0].device_kind
    elif keras.backend.backend() == "torch":
        import torch

        kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    else:
        import tensorflow as tf

        kind = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    return f"{kind}, {len(os.sched_getaffinity(0))} cores" if kind == "cpu" else kind


def made_by():
    """As `meta.provenance` has it, which imports TensorFlow."""
    commit = _COMMIT.value
    if commit is None:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    backend = keras.backend.backend()
    module = __import__(backend)
    arguments = " ".join(["benchmarks/performance/backend_step.py", *sys.argv[1:]])
    return {
        "command": f"KERAS_BACKEND={backend} python {arguments}",
        "commit": commit,
        "versions": {m.__name__: m.__version__ for m in (keras, np, module)},
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    found = {"device": device(), "models": {}, "made_by": made_by()}
    kind = "cpu" if "cpu" in found["device"] else "gpu"
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    path = os.path.join(_OUT_DIR.value, f"{keras.backend.backend()}_step_{kind}.json")
    names, repetitions = _MODELS.value, _REPETITIONS.value
    if _SMOKE.value:
        names, repetitions = ["mlp"], 1
    for model in names:
        found["models"][model] = measure(models.SHAPES[model](), repetitions)
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            json.dump(found, f, indent=1)
        os.replace(f"{path}.tmp", path)
    print(f"Figures: {path}")


if __name__ == "__main__":
    app.run(main)
