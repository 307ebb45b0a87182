"""The contract of a task: an inner problem for optimizers to solve."""

import abc


class Task(abc.ABC):
    """An inner problem, with an explicit particle axis and stateless randomness.

    Every method is pure, compiles under XLA, and works on many independent
    copies of the problem at once. A seed is one of `meta.random`: the same seed
    gives the same values on every machine.

    Attributes:
        loss_clip: outer losses are clipped at this value, so that a diverged
            particle costs a bounded amount.
    """

    loss_clip = 10.0

    @abc.abstractmethod
    def init(self, seed, num):
        """Initial parameters of `num` independent problems: list of `[num, *shape]`."""

    @abc.abstractmethod
    def batch(self, split, seed, num):
        """A random batch for each of `num` problems.

        Args:
            split: "train", "validation" or "test", a Python string.
            seed: `[2]`.
            num: Python int.

        Returns:
            A nest of `[num, ...]` tensors, as `loss` takes it.
        """

    @abc.abstractmethod
    def loss(self, params, data):
        """The loss of each particle: `[P]`, from params and data of P particles."""

    @abc.abstractmethod
    def get_config(self):
        """The constructor's arguments, as JSON can hold them."""
