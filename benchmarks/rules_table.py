"""The table of update rules in docs/rules.md: state and arithmetic per parameter.

python benchmarks/rules_table.py

Counted, not timed, on one matrix of 512 x 512: the bytes of state that
LearnedOptimizer keeps for it, and the multiply-adds of all matrix products in one
step (the network; what else is done entry by entry is not counted).
"""

import functools
import math
from unittest import mock

import keras
import tensorflow as tf
from absl import app, logging
from keras import ops

from lopt_keras import LearnedOptimizer, rules
from meta import smoke

smoke.define()

_SHAPE = (512, 512)
_RULES = {
    **{name: rules.get(name) for name in rules.NAMES},
    "FactoredMLP(hidden_size=32)": rules.FactoredMLP(hidden_size=32),
}


def state_bytes(rule):
    """Bytes of the rule's state per parameter."""
    optimizer = LearnedOptimizer(weights=rule.init_theta(), rule=rule)
    optimizer.build([keras.Variable(tf.zeros(_SHAPE))])
    state = optimizer._state
    sizes = [int(ops.size(v)) for v in [*state.tensors[0].values(), *state.shared.values()]]
    return 4 * sum(sizes) / math.prod(_SHAPE)


def multiply_adds(rule):
    """Multiply-adds of the matrix products of a step, per parameter."""
    count = 0
    matmul, einsum = ops.matmul, ops.einsum

    @functools.wraps(matmul)
    def counted_matmul(x, y):
        nonlocal count
        product = matmul(x, y)
        count += math.prod(product.shape) * x.shape[-1]
        return product

    @functools.wraps(einsum)
    def counted_einsum(subscripts, *operands):
        nonlocal count
        given = subscripts.partition("->")[0].split(",")
        axes, batch = {}, 1
        for s, x in zip(given, operands, strict=True):
            names = s.removeprefix("...")
            batch = max(batch, math.prod(x.shape[: len(x.shape) - len(names)]))
            axes.update(zip(names, x.shape[len(x.shape) - len(names) :], strict=True))
        count += batch * math.prod(axes.values())
        return einsum(subscripts, *operands)

    params = [tf.zeros((1, *_SHAPE))]
    theta = {name: tf.constant(value[None]) for name, value in rule.init_theta().items()}
    state = rule.init_state(theta, params)
    counted = {"matmul": counted_matmul, "einsum": counted_einsum}
    with mock.patch.multiple(ops, **counted):
        rule.update(theta, state, params, params, rules.Signals.silent(tf.constant([0])))
    return count / math.prod(_SHAPE)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    print(f"{'rule':>30}  state bytes  multiply-adds, each per parameter")
    for name, rule in _RULES.items():
        print(f"{name:>30}  {state_bytes(rule):11.1f}  {multiply_adds(rule):13.1f}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
