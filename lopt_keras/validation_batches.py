"""Batches of held-out data, one at a time, from whatever Keras takes as validation data."""

import types
import warnings
from typing import Any

import keras

from lopt_keras import keras_private


class ValidationBatches:
    """Batches in turn, from the beginning again at the end.

    Args:
        data: as `validation_data` of `fit`: a tuple or list `(x, y)` or `(x, y, sample_weight)` of
            nests of arrays, or a `tf.data.Dataset`, a `keras.utils.PyDataset`, a torch
            `DataLoader` or a generator, of such batches.
        batch_size: rows of arrays in a batch; other data have batches of their own.

    Attributes:
        num_batches: of the data, or None where that is not known.

    Raises:
        TypeError, ValueError: if Keras would not take the data.
    """

    def __init__(self, data: Any, batch_size: int) -> None:
        if hasattr(data, "shape") or isinstance(data, dict):
            raise ValueError(
                "`data` must be what `fit` takes as validation_data: arrays come in a tuple, "
                f"`(x, y)`. Received: {type(data).__name__} on its own"
            )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        try:
            self._adapter = keras_private.data_adapter(x, y, sample_weight, batch_size)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"`data` must be what `fit` takes as validation_data. {error}"
            ) from error
        if self._adapter.num_batches == 0:
            raise ValueError("`data` must hold at least one batch. Received none.")
        self.num_batches = self._adapter.num_batches
        # Keras's adapter would repeat the first batches of a generator that has ended.
        self._begins_again = not isinstance(x, types.GeneratorType)
        self._iterator: Any = None
        self._ended = False

    def start(self, count: int) -> None:
        """Begins as if `count` batches had been taken before, where their number is known."""
        if self._iterator is None or self._begins_again:
            self._begin()
            for _ in range(count % (self._adapter.num_batches or 1)):
                next(self._iterator, None)

    def next(self) -> Any:
        """The next batch, `(x, y, sample_weight)`, the last two perhaps None.

        None, with a warning, if data that cannot begin again have come to their end.
        """
        batch = next(self._iterator, None)
        if batch is None and self._begins_again:
            self._adapter.on_epoch_end()
            self._begin()
            batch = next(self._iterator, None)
        if batch is not None:
            return keras.utils.unpack_x_y_sample_weight(batch)
        if not self._ended:
            warnings.warn(
                "The validation data have come to their end and cannot begin again: no more "
                "validation losses are told.",
                stacklevel=2,
            )
        self._ended = True
        return None

    def _begin(self) -> None:
        self._adapter.on_epoch_begin()
        self._iterator = iter(_batches(self._adapter))


def _batches(adapter: Any) -> Any:
    """What the backend's own trainer would iterate over."""
    return {
        "tensorflow": adapter.get_tf_dataset,
        "jax": adapter.get_jax_iterator,
        "torch": adapter.get_torch_dataloader,
    }[keras.backend.backend()]()
