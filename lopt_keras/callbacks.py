"""What a Keras `fit` has to tell the optimizer: the horizon and the validation loss."""

import contextlib
import math

import keras
from keras import ops

from lopt_keras.learned_optimizer import LearnedOptimizer
from lopt_keras.rules.base import check_integer

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "torch":
    import torch


class _OptimizerCallback(keras.callbacks.Callback):
    """A callback that talks to the model's `LearnedOptimizer`s."""

    def set_model(self, model):
        super().set_model(model)
        self._optimizers = _learned_optimizers(model.optimizer)
        if not self._optimizers:
            raise TypeError(
                f"{type(self).__name__} needs a model that is compiled with a LearnedOptimizer. "
                f"Received: optimizer={model.optimizer}"
            )


class Horizon(_OptimizerCallback):
    """Tells the optimizer how many steps `fit` is going to take.

    Sets `total_steps` at the beginning of each epoch, to the steps taken so far and
    those of the epochs to come. Where `fit` does not know the steps of an epoch (a
    generator), the horizon is known from the second epoch on.
    """

    def on_train_begin(self, logs=None):
        self._batches = self.params.get("steps")
        self._seen = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._seen = 0
        if self._batches is None:
            return
        _synchronise(self.model)
        batches = self._batches * (self.params["epochs"] - epoch)
        for optimizer in self._optimizers:
            taken = int(ops.convert_to_numpy(optimizer.iterations))
            steps = math.ceil(batches / (optimizer.gradient_accumulation_steps or 1))
            optimizer.total_steps = taken + steps

    def on_train_batch_end(self, batch, logs=None):
        self._seen = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self._batches = self._batches or self._seen


class ValidationLoss(_OptimizerCallback):
    """Tells the optimizer the validation loss.

    >>> model.fit(x, y, validation_data=held_out, callbacks=[ValidationLoss()])
    >>> model.fit(x, y, callbacks=[ValidationLoss(data=held_out, every=100)])

    Args:
        data: `None`: the `val_loss` of `fit`, at the end of each epoch in which it
            is computed. Or a pair of arrays `(inputs, targets)`: the mean loss
            of one batch of them, in turn.
        every: Number of training batches between two batches of `data`. Defaults
            to 100.
        batch_size: Rows of `data` in a batch. Defaults to 128.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(self, data=None, every=100, batch_size=128):
        super().__init__()
        check_integer("every", every, low=1)
        check_integer("batch_size", batch_size, low=1)
        if data is not None and not (isinstance(data, tuple | list) and len(data) == 2):
            raise TypeError(
                f"`data` must be None or a pair (inputs, targets). Received: type {type(data)}"
            )
        if data is not None and not len(data[0]) == len(data[1]) > 0:
            raise ValueError(
                "`data` must have as many inputs as targets, and at least one. "
                f"Received: {len(data[0])} inputs and {len(data[1])} targets"
            )
        self._data = data
        self._every = every
        self._batch_size = batch_size

    def on_train_begin(self, logs=None):
        self._loss = _loss_function(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        # From the optimizer, so that a resumed run goes on with the same batches.
        _synchronise(self.model)
        optimizer = self._optimizers[0]
        steps = int(ops.convert_to_numpy(optimizer.iterations))
        self._count = steps * (optimizer.gradient_accumulation_steps or 1)

    def on_train_batch_end(self, batch, logs=None):
        self._count += 1
        if self._data is None or self._count % self._every:
            return
        _synchronise(self.model)
        inputs, targets = self._data
        batches = math.ceil(len(inputs) / self._batch_size)
        start = (self._count // self._every - 1) % batches * self._batch_size
        rows = slice(start, start + self._batch_size)
        self._tell(self._loss(inputs[rows], targets[rows]))

    def on_epoch_end(self, epoch, logs=None):
        if self._data is None and "val_loss" in (logs or {}):
            self._tell(logs["val_loss"])

    def _tell(self, loss):
        for optimizer in self._optimizers:
            optimizer.observe(validation_loss=loss)


def _learned_optimizers(optimizer):
    """Those in an optimizer or in what it wraps."""
    if isinstance(optimizer, LearnedOptimizer):
        return [optimizer]
    inner = list(getattr(optimizer, "optimizers", []))
    inner += [getattr(optimizer, "inner_optimizer", None)]
    return [found for x in inner if x is not None for found in _learned_optimizers(x)]


def _loss_function(model):
    """The model's own loss of one batch, with what only training does switched off.

    `evaluate` and `test_on_batch` would mix it into the metrics of the running epoch.
    """

    def loss(x, y):
        x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
        return model.compute_loss(x=x, y=y, y_pred=model(x, training=False), training=False)

    if keras.backend.backend() == "tensorflow":
        return tf.function(loss, autograph=False)

    def without_gradients(x, y):
        torch_backend = keras.backend.backend() == "torch"
        with torch.no_grad() if torch_backend else contextlib.nullcontext():
            return loss(x, y)

    return without_gradients


def _synchronise(model):
    """Lets the variables have their values: with JAX, `fit` keeps them elsewhere."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
