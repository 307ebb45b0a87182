"""The optimizers that the benchmarks compare."""

import keras
import tensorflow as tf

from lopt_keras import LearnedOptimizer, rules

BASELINES = {"Adam": keras.optimizers.Adam, "AdamW": keras.optimizers.AdamW}

RULES = {
    "default": LearnedOptimizer().rule,
    "factored_mlp/8": rules.FactoredMLP(),
    "factored_mlp/32": rules.FactoredMLP(hidden_size=32),
    "mlp/8": rules.MLP(hidden_size=8),
    "mlp/32": rules.MLP(),
    "normalized_mlp": rules.NormalizedMLP(orthogonalize=False),
    "normalized_mlp/orthogonal": rules.NormalizedMLP(),
    "hierarchical": rules.Hierarchical(),
    "recurrent": rules.Recurrent(),
    "learned_hyperparameters": rules.LearnedHyperparameters(),
    "scheduled": rules.Scheduled(),
}
"""That of the shipped weights, and every rule, as far as worth telling apart; with hidden sizes."""


UNCOMPILED = "/uncompiled"
"""After the name of a rule: without XLA."""


def make(name):
    """The optimizer of that name."""
    if name in BASELINES:
        return BASELINES[name]()
    rule = RULES[name.removesuffix(UNCOMPILED)]
    return LearnedOptimizer(None, rule, jit_compile=not name.endswith(UNCOMPILED))


def step(name, variables, gradients):
    """A function that takes one step, and ends when it is taken; its `optimizer` is an attribute.

    Keras compiles its optimizers' step only with the model's; here XLA compiles it alone.
    """
    optimizer = make(name)
    optimizer.build(variables)
    compiled = tf.function(
        lambda gradients: optimizer.apply(gradients, variables),
        jit_compile=name in BASELINES,
        autograph=False,
    )

    def take():
        compiled(gradients)
        # On an accelerator, the call above returns before the work is done.
        variables[0].value[:1, :1].numpy()

    take.optimizer = optimizer
    return take
