"""What a Keras `fit` has to tell the optimizer: the horizon and the validation loss."""

import contextlib
import math

import keras
from keras import ops

from lopt_keras.learned_optimizer import LearnedOptimizer
from lopt_keras.validation import check_integer
from lopt_keras.validation_batches import ValidationBatches

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
    those of the epochs to come, and takes it back at the end of `fit`: what `total_steps` was
    before holds again, if that many steps have not been taken yet, or None. Where `fit` does not
    know the steps of an epoch (a generator), the horizon is known from the second epoch on.
    """

    def on_train_begin(self, logs=None):
        self._batches = self.params.get("steps")
        self._told_before = [optimizer.total_steps for optimizer in self._optimizers]

    def on_epoch_begin(self, epoch, logs=None):
        _synchronise(self.model)
        self._begin = _num_batches(self._optimizers[0])
        if self._batches is None:
            return
        batches = self._batches * (self.params["epochs"] - epoch)
        for optimizer in self._optimizers:
            steps = math.ceil(batches / (optimizer.gradient_accumulation_steps or 1))
            optimizer.total_steps = _num_steps(optimizer) + steps

    def on_epoch_end(self, epoch, logs=None):
        if self._batches is None:
            _synchronise(self.model)
            self._batches = _num_batches(self._optimizers[0]) - self._begin or None

    def on_train_end(self, logs=None):
        _synchronise(self.model)
        for optimizer, told in zip(self._optimizers, self._told_before, strict=True):
            ahead = told is not None and told > _num_steps(optimizer)
            optimizer.total_steps = told if ahead else None


class ValidationLoss(_OptimizerCallback):
    """Tells the optimizer the validation loss.

    >>> model.fit(x, y, validation_data=held_out, callbacks=[ValidationLoss()])
    >>> model.fit(x, y, callbacks=[ValidationLoss(data=held_out, every=100)])

    Args:
        data: `None`: the `val_loss` of `fit`, at the end of each epoch in which it
            is computed. Or whatever `fit` takes as `validation_data`: the mean loss of
            one batch of it, in turn.
        every: Number of training batches between two batches of `data`. With
            `steps_per_execution`, those that are due are told after each execution.
            Defaults to 100.
        batch_size: Rows of a batch, if `data` are arrays. Other data have batches of their
            own. Defaults to 128.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(self, data=None, every=100, batch_size=128):
        super().__init__()
        check_integer("every", every, low=1)
        check_integer("batch_size", batch_size, low=1)
        self._data = None if data is None else ValidationBatches(data, batch_size)
        self._every = every

    def on_train_begin(self, logs=None):
        self._loss = _loss_function(self.model)
        self._count = None

    def on_epoch_begin(self, epoch, logs=None):
        # From the optimizer, so that a resumed run goes on with the same batches.
        _synchronise(self.model)
        self._begin = _num_batches(self._optimizers[0])
        if self._count is None and self._data is not None:
            self._data.start(self._begin // self._every)
        self._count = self._begin

    def on_train_batch_end(self, batch, logs=None):
        if self._data is None:
            return
        # The last execution of an epoch may have fewer batches than it counts.
        taken = min(batch + 1, self.params.get("steps") or batch + 1)
        told, self._count = self._count // self._every, self._begin + taken
        due = self._count // self._every - told
        if due:
            _synchronise(self.model)
        for _ in range(due):
            held_out = self._data.next()
            if held_out is not None:
                self._tell(self._loss(*held_out))

    def on_epoch_end(self, epoch, logs=None):
        if self._data is None and "val_loss" in (logs or {}):
            self._tell(logs["val_loss"])

    def _tell(self, loss):
        for optimizer in self._optimizers:
            optimizer.observe(validation_loss=loss)


def _num_steps(optimizer):
    return int(ops.convert_to_numpy(optimizer.iterations))


def _num_batches(optimizer):
    """The training batches that an optimizer has seen, those that it left out among them."""
    return int(ops.convert_to_numpy(optimizer._iterations)) + optimizer.skipped_steps


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

    def loss(x, y, sample_weight):
        prediction = model(x, training=False)
        return model.compute_loss(
            x=x, y=y, y_pred=prediction, sample_weight=sample_weight, training=False
        )

    if keras.backend.backend() == "tensorflow":
        return tf.function(loss, autograph=False, reduce_retracing=True)

    def without_gradients(*batch):
        batch = keras.tree.map_structure(
            lambda x: None if x is None else ops.convert_to_tensor(x), batch
        )
        torch_backend = keras.backend.backend() == "torch"
        with torch.no_grad() if torch_backend else contextlib.nullcontext():
            return loss(*batch)

    return without_gradients


def _synchronise(model):
    """Lets the variables have their values: with JAX, `fit` keeps them elsewhere."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
