"""What an optimizer needs of Keras that has no public name, in one place.

Everything else of this package stands on public names. A release of Keras that renames one of
these breaks here only, and `tests/lopt_keras/test_private_names.py` names it.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras.src.trainers import data_adapters

from lopt_keras.types import Tensor

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

NAMES = {
    "_backend_apply_gradients": "3.0",
    "_trainable_variables": "3.0",
    "_model_variables_moving_average": "3.0",
    "_accumulated_gradients": "3.0",
    "_iterations": "3.5",
    "_get_variable_index": "3.0",
    "_use_weight_decay": "3.0",
    "_clip_gradients": "3.0",
    "_track_variable": "3.0",
}
"""The private names of any backend's optimizer, each with the version that has it at the latest."""

TENSORFLOW_NAMES = {"_distribution_strategy": "3.0", "_all_reduce_sum_gradients": "3.2"}
"""Those of TensorFlow's besides."""


class Optimizer(keras.optimizers.Optimizer):
    """A Keras optimizer whose private parts have names that a subclass can use."""

    def _take_step(self, grads: Sequence[Tensor], variables: Sequence[Any]) -> None:
        """One step for the whole list; what a subclass implements.

        Args:
            grads: list of tensors, scaled and without those of variables that have none.
            variables: list of `keras.Variable`.
        """
        raise NotImplementedError

    def _backend_apply_gradients(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[Any]
    ) -> None:
        # Keras's own loops over the variables, in each backend in its own way, and does the
        # accumulation of gradients, the clipping and the averages there.
        self._take_step(grads, trainable_variables)

    @property
    def _all_variables(self) -> list[Any]:
        """The variables that the optimizer was built for, in their order: list."""
        # `variables` are the optimizer's own.
        return self._trainable_variables

    @property
    def _averages(self) -> list[Any]:
        """The moving average of each of `_all_variables`, None of one that has none: list."""
        return self._model_variables_moving_average

    @property
    def _calls(self) -> Any:
        """The variable that Keras advances after each call of `apply`."""
        # `iterations` counts the steps of accumulated gradients.
        return self._iterations

    def _accumulators(self, variables: Sequence[Any]) -> list[Any]:
        """The sums of the gradients of variables, while they are accumulated: list."""
        return [self._accumulated_gradients[self._index_of(variable)] for variable in variables]

    def _index_of(self, variable: Any) -> int:
        """Where a variable stands in `_all_variables`."""
        return self._get_variable_index(variable)

    def _is_known(self, variable: Any) -> bool:
        """Whether the optimizer was built for a variable."""
        try:
            self._index_of(variable)
        except KeyError:
            return False
        return True

    def _has_decay(self, variable: Any) -> bool:
        """Whether a variable is not excluded from weight decay."""
        return self._use_weight_decay(variable)

    def _clipped(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradients after `clipnorm`, `clipvalue` or `global_clipnorm`: list."""
        return self._clip_gradients(grads)

    def _track(self, variable: Any) -> None:
        """Makes a variable the optimizer's own, which is saved with it."""
        # `add_variable` has no argument for synchronization.
        self._track_variable(variable)

    def _summed_over_replicas(self, pairs: Sequence[tuple[Tensor, Any]]) -> list[Tensor]:
        """Pairs of a tensor and its variable, or None, summed over the replicas: list of tensors.

        With TensorFlow only.
        """
        return [value for value, _ in self._all_reduce_sum_gradients(pairs)]

    def _assign_in_replicas(self, variables: Sequence[Any], values: Sequence[Tensor]) -> None:
        """Assigns values to variables, from within or outside of replicas of `tf.distribute`.

        With TensorFlow only.
        """

        def assign(strategy: Any, values: Sequence[Tensor]) -> None:
            for variable, value in zip(variables, values, strict=True):
                native = variable.value if isinstance(variable, keras.Variable) else variable
                strategy.extended.update(native, self.assign, args=(value,), group=False)

        # As Keras does: what is public, `merge_call`, fails in strategies that need none.
        merge_call = tf.__internal__.distribute.interim.maybe_merge_call
        merge_call(assign, self._distribution_strategy, values)


def any_in_replicas(variables: Sequence[Any]) -> bool:
    """Whether there are replicas of `tf.distribute`, or one of the variables has copies there.

    With TensorFlow only.
    """
    values = (getattr(variable, "value", variable) for variable in variables)
    return tf.distribute.has_strategy() or any(
        isinstance(value, tf.distribute.DistributedValues) for value in values
    )


def data_adapter(x: Any, y: Any, sample_weight: Any, batch_size: int) -> Any:
    """What makes batches of whatever `fit` takes as data, as Keras itself makes them.

    Public are only the loops that use it.
    """
    return data_adapters.get_data_adapter(x, y, sample_weight=sample_weight, batch_size=batch_size)


def flatten_layers(model: Any) -> list[Any]:
    """All layers of a model, those inside of other layers among them."""
    # `layers` has those of the first level only. Since 3.0.
    return list(model._flatten_layers())
