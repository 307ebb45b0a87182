"""Which update rules can be a self-training population."""

import numpy as np
from keras import ops

from lopt_keras import rules
from lopt_keras.rules.base import UpdateRule

LEARNED = (rules.MLP, rules.FactoredMLP, rules.Hierarchical, rules.Recurrent)
"""The rules that are networks through and through, with no hand-designed optimizer inside."""


def check_rule(rule: UpdateRule) -> None:
    """Raises if a rule is no network, or cannot train.

    It is tried: one step from a random start, with the rule's own theta as what it trains.

    Args:
        rule: `UpdateRule`.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if type(rule) not in LEARNED:  # A subclass may have Adam or Muon inside.
        names = ", ".join(cls.__name__ for cls in LEARNED)
        raise ValueError(
            "`rule` must be a network without a hand-designed optimizer inside, one of "
            f"{names}. Received: rule={rule}"
        )
    rng = np.random.default_rng(0)
    theta = {name: ops.convert_to_tensor(x[None]) for name, x in rule.init_theta(0).items()}
    params = list(theta.values())
    grads = [ops.convert_to_tensor(rng.standard_normal(x.shape).astype("float32")) for x in params]
    signals = rules.Signals.silent(ops.zeros(1, "int32"))
    updates, _ = rule.update(theta, rule.init_state(theta, params), grads, params, signals)
    largest = max(float(ops.max(ops.abs(update))) for update in updates)
    if not np.isfinite(largest) or largest == 0:
        raise ValueError(
            "`rule` cannot train: from a random start, its steps are "
            f"{'zero' if largest == 0 else 'not finite'}. Received: rule={rule}"
        )
