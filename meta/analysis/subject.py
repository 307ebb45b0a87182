"""What is analysed: an update rule with its meta-parameters."""

import dataclasses

import tensorflow as tf

from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Arrays, Tensors


@dataclasses.dataclass(frozen=True)
class Subject:
    """An update rule with its meta-parameters.

    Attributes:
        name: for tables and pictures.
        rule, theta: `UpdateRule`, and dict of arrays.

    Raises:
        ValueError: if theta is not one of the rule's, or empty.
    """

    name: str
    rule: UpdateRule
    theta: Arrays

    def __post_init__(self) -> None:
        theta = self.rule.check_theta(self.theta)
        if not theta:
            raise ValueError(
                f"A rule to analyse must have meta-parameters. Received: {self.rule} with none"
            )
        object.__setattr__(self, "theta", theta)

    @classmethod
    def hand_designed(cls, name: str, rule: UpdateRule) -> "Subject":
        """A rule with the theta that its constructor gives."""
        return cls(name, rule, rule.init_theta())

    def copies(self, count: int) -> Tensors:
        """Theta for `count` particles: dict of tensors `[count, ...]`."""
        return {
            name: tf.repeat(tf.constant(value)[None], count, axis=0)
            for name, value in self.theta.items()
        }
