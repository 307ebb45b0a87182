"""How near the step of the default rule is to what this machine could do.

python benchmarks/performance/floor.py --out_dir=benchmarks/results/performance

The floor is the larger of two times: that of the network's multiply-adds at the rate of a
large matrix product, and that of the bytes that must move at the rate of a large copy.
Both are measured here, in turn with the step itself.
"""

import itertools
import math
import os

import contenders
import models
import stopwatch
import tensorflow as tf
from absl import app, flags, logging

from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 30, "Measurements of each.", lower_bound=2)
_MATRIX = flags.DEFINE_integer("matrix", 2048, "Rows of the matrices of a product.", lower_bound=1)
_RULES = flags.DEFINE_list("rules", "factored_mlp/8,factored_mlp/32", "Rules, as in contenders.")
smoke.define(repetitions=2, matrix=64, rules=["factored_mlp/8"])
_COPIED = 2**24


def floor(rule):
    """Floating-point operations and bytes for each parameter of a matrix: `(int, int)`.

    Of the features, those that are constant along rows or columns cost nothing. Momenta,
    second moments and the parameter are read and written, the gradient is read twice, as
    the second moment of features is known only after all of them.
    """
    momenta, rms = len(rule.momentum_decays), len(rule.rms_decays)
    inputs = 2 + 2 * (momenta + rms) + 2 * momenta
    sizes = [inputs, *[rule.hidden_size] * rule.hidden_layers, 2]
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    return 2 * products, 4 * (2 * (momenta + rms + 1) + 2)


def copy():
    """A function that reads and writes `_COPIED` floats each, without new memory."""
    x, y = tf.Variable(tf.ones(_COPIED)), tf.Variable(tf.zeros(_COPIED))
    program = tf.function(lambda: y.assign(x + 1.0), jit_compile=True, autograph=False)
    return lambda: program()[0].numpy()


def product():
    """A function that multiplies two square matrices of `--matrix` rows."""
    x = tf.random.stateless_normal((_MATRIX.value, _MATRIX.value), (0, 0))
    program = tf.function(tf.matmul, jit_compile=True, autograph=False)
    return lambda: program(x, x)[0, 0].numpy()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    shapes = models.mlp()
    functions = {"copy": copy(), "product": product()}
    for name in _RULES.value:
        functions[name] = contenders.step(name, *models.variables(shapes))
    stopwatch.interleaved(functions, 2)
    found = stopwatch.interleaved(functions, _REPETITIONS.value)
    peak = {
        "gigabytes_per_second": 8 * _COPIED / found["copy"]["wall"],
        "gigaflops_per_second": 2 * _MATRIX.value**3 / found["product"]["wall"],
    }
    print(peak)
    rules = {}
    for name in _RULES.value:
        flops, moved = floor(contenders.RULES[name])
        achieved = found[name]["wall"] / sum(math.prod(shape) for shape in shapes)
        compute = flops / peak["gigaflops_per_second"]
        memory = moved / peak["gigabytes_per_second"]
        rules[name] = {
            "flops": flops,
            "bytes": moved,
            "compute_nanoseconds": round(compute, 2),
            "memory_nanoseconds": round(memory, 2),
            "achieved_nanoseconds": round(achieved, 2),
            "share_of_floor": round(max(compute, memory) / achieved, 3),
        }
        print(name, rules[name])
    path = os.path.join(_OUT_DIR.value, "floor.json")
    stopwatch.write(path, {"peak": peak, "for_each_parameter_of_the_mlp": rules})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
