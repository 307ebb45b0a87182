"""Keras's own tests of optimizers, with ours in the place of its SGD and Adam.

Keras ships them in its wheel. Ours runs the rules `SGD` and `Adam`, so that the numbers
must be the same.
"""

import pytest

from lopt_keras import LearnedOptimizer, rules

keras_optimizers = pytest.importorskip("keras.src.optimizers")
optimizer_test = pytest.importorskip("keras.src.optimizers.optimizer_test")
loss_scale_optimizer_test = pytest.importorskip("keras.src.optimizers.loss_scale_optimizer_test")

HYPERPARAMETERS = ("momentum", "beta_1", "beta_2", "epsilon")


def in_place_of(rule_class, **defaults):
    """A function with the arguments of a Keras optimizer."""

    def make(learning_rate=0.001, **kwargs):
        hyperparameters = {k: kwargs.pop(k) for k in HYPERPARAMETERS if k in kwargs}
        # The rule's own is 1: the optimizer's multiplies its step.
        rule = rule_class(learning_rate=1.0, **{**defaults, **hyperparameters})
        return LearnedOptimizer(
            rule.init_theta(), rule, learning_rate=learning_rate, jit_compile=False, **kwargs
        )

    return make


class _Replaced:
    """Has Keras's tests use ours."""

    module = None

    def setUp(self):
        super().setUp()
        patches = pytest.MonkeyPatch()
        self.addCleanup(patches.undo)
        patches.setattr(self.module, "SGD", in_place_of(rules.SGD, momentum=0.0))
        patches.setattr(self.module, "Adam", in_place_of(rules.Adam), raising=False)


class TestOptimizer(_Replaced, optimizer_test.OptimizerTest):
    module = keras_optimizers

    # These ask for Keras's own classes, names and numbers of variables.
    test_get_method = None
    test_optimizer_auto_naming = None
    test_setting_lr_to_callable_untracks_lr_var = None


class TestLossScaleOptimizer(_Replaced, loss_scale_optimizer_test.LossScaleOptimizerTest):
    module = loss_scale_optimizer_test

    # Asks for an argument of SGD that is a field of our rule.
    test_config = None
