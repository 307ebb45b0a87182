"""Callbacks of `fit`: what it has to tell the optimizer, and what averages of weights need."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from lopt_keras import batch_statistics
from lopt_keras.learned_optimizer import LearnedOptimizer
from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from lopt_keras.validation_batches import ValidationBatches

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "torch":
    import torch


class _OptimizerCallback(keras.callbacks.Callback):
    """A callback that talks to the model's `LearnedOptimizer`s."""

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._optimizers = _learned_optimizers(model.optimizer)
        if not self._optimizers:
            raise TypeError(
                f"{type(self).__name__} needs a model that is compiled with a LearnedOptimizer. "
                f"Received: optimizer={model.optimizer}"
            )


class Horizon(_OptimizerCallback):
    """Tells the optimizer how many steps `fit` is going to take.

    It sets `total_steps` at the beginning of each epoch: the steps taken so far, and those of
    the epochs to come. At the end of `fit` it restores the earlier `total_steps`, or None if
    that many steps have been taken. If `fit` does not know the steps of an epoch (a generator),
    the horizon is known from the second epoch on.

    If the `fit` is too short for XLA to pay, the optimizer leaves it out
    (`LearnedOptimizer.choose_compilation`), unless XLA compiles the whole model, or the model is
    not built before. A `fit` that is resumed goes on as it began.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._batches = self.params.get("steps")
        self._told_before = [optimizer.total_steps for optimizer in self._optimizers]
        self._is_first_epoch = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        _synchronise(self.model)
        self._begin = _num_batches(self._optimizers[0])
        ahead: list[int | None] = [None] * len(self._optimizers)
        if self._batches is not None:
            batches = self._batches * (self.params["epochs"] - epoch)
            ahead = [_steps_of(batches, optimizer) for optimizer in self._optimizers]
        if self._is_first_epoch:
            self._choose_compilation(ahead)
            self._is_first_epoch = False
        for optimizer, steps in zip(self._optimizers, ahead, strict=True):
            if steps is not None:
                optimizer.total_steps = _num_steps(optimizer) + steps

    def _choose_compilation(self, ahead: Sequence[int | None]) -> None:
        """By the steps that are ahead of each optimizer, None if they are not known."""
        shapes = [tuple(variable.shape) for variable in self.model.trainable_variables]
        chooses = self.model.built and not self.model.jit_compile
        changes = False
        for optimizer, steps in zip(self._optimizers, ahead, strict=True):
            if steps is None or not _is_under_way(optimizer, steps):
                changes |= optimizer.choose_compilation(shapes, steps if chooses else None)
        if changes:
            # What `fit` has traced would keep to the choice of then.
            self.model.train_function = None
            self.model.make_train_function()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._batches is None:
            _synchronise(self.model)
            self._batches = _num_batches(self._optimizers[0]) - self._begin or None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        _synchronise(self.model)
        for optimizer, told in zip(self._optimizers, self._told_before, strict=True):
            ahead = told is not None and told > _num_steps(optimizer)
            optimizer.total_steps = told if ahead else None


class ValidationLoss(_OptimizerCallback):
    """Tells the optimizer the validation loss.

    >>> model.fit(x, y, validation_data=held_out, callbacks=[ValidationLoss()])
    >>> model.fit(x, y, callbacks=[ValidationLoss(data=held_out, every=100)])

    Args:
        data: `None` for the `val_loss` of `fit`, at the end of each epoch that computes
            it. Or whatever `fit` takes as `validation_data`, for the mean loss of one
            batch of it. The batches take turns.
        every: Number of training batches between two batches of `data`. With
            `steps_per_execution`, those that are due are told after each execution.
            Defaults to 100.
        batch_size: Rows of a batch, if `data` are arrays. Other data have batches of their
            own. Defaults to 128.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(self, data: Any = None, every: int = 100, batch_size: int = 128) -> None:
        super().__init__()
        check_integer("every", every, low=1)
        check_integer("batch_size", batch_size, low=1)
        self._data = None if data is None else ValidationBatches(data, batch_size)
        self._every = every

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._loss = _loss_function(self.model)
        self._count: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # From the optimizer, so that a resumed run goes on with the same batches.
        _synchronise(self.model)
        self._begin = _num_batches(self._optimizers[0])
        if self._count is None and self._data is not None:
            self._data.start(self._begin // self._every)
        self._count = self._begin

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._data is None:
            return
        # The last execution of an epoch may have fewer batches than it counts.
        taken = min(batch + 1, self.params.get("steps") or batch + 1)
        before, self._count = self._count or 0, self._begin + taken
        due = self._count // self._every - before // self._every
        if due:
            _synchronise(self.model)
        for _ in range(due):
            held_out = self._data.next()
            if held_out is not None:
                self._tell(self._loss(*held_out))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._data is None and logs and "val_loss" in logs:
            self._tell(logs["val_loss"])

    def _tell(self, loss: Any) -> None:
        for optimizer in self._optimizers:
            optimizer.observe(validation_loss=loss)


class BatchStatistics(keras.callbacks.Callback):
    """Computes the statistics of batch normalisation anew, before each validation and at the end.

    For models with `keras.layers.BatchNormalization`, and with any optimizer. The moving means
    and variances that these layers keep are of earlier weights, and an average of the weights
    has others. In a training of a few hundred steps this can spoil the validation loss.

    >>> model.fit(x, y, validation_data=held_out, callbacks=[BatchStatistics((x, y))])

    Put it behind `keras.callbacks.SwapEMAWeights`, which is to swap first.

    Args:
        data: the training data, as `fit` takes validation data: arrays in a tuple, `(x,)` or
            `(x, y)`, or batches, as a `tf.data.Dataset`.
        batch_size: rows of a batch, if `data` are arrays. That of the training fits best.
            Defaults to 32, as in `fit`.
        num_batches: to compute the statistics from, at most. Defaults to 100.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(self, data: Any, batch_size: int = 32, num_batches: int = 100) -> None:
        super().__init__()
        self._statistics = batch_statistics.BatchStatistics(data, batch_size, num_batches)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._refresh()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        # The optimizer has put its averages in place of the weights before.
        self._refresh()

    def _refresh(self) -> None:
        _synchronise(self.model)
        self._statistics.refresh(self.model)


def _num_steps(optimizer: Any) -> int:
    return int(ops.convert_to_numpy(optimizer.iterations))


def _is_under_way(optimizer: Any, ahead: int) -> bool:
    """Whether the steps ahead are the rest of those that the optimizer was told of."""
    # Steps that were left out make them fewer.
    steps, told = _num_steps(optimizer), optimizer.total_steps
    return steps > 0 and told is not None and steps + ahead <= told


def _steps_of(batches: int, optimizer: Any) -> int:
    """The steps that an optimizer takes in so many batches."""
    return math.ceil(batches / (optimizer.gradient_accumulation_steps or 1))


def _num_batches(optimizer: Any) -> Tensor:
    """The training batches that an optimizer has seen, those that it left out among them."""
    return int(ops.convert_to_numpy(optimizer._calls)) + optimizer.skipped_steps


def _learned_optimizers(optimizer: Any) -> list[Any]:
    """Those in an optimizer or in what it wraps."""
    if isinstance(optimizer, LearnedOptimizer):
        return [optimizer]
    inner = list(getattr(optimizer, "optimizers", []))
    inner += [getattr(optimizer, "inner_optimizer", None)]
    return [found for x in inner if x is not None for found in _learned_optimizers(x)]


def _loss_function(model: Any) -> Callable[..., Any]:
    """The model's own loss of one batch, with what only training does switched off.

    `evaluate` and `test_on_batch` would mix it into the metrics of the running epoch.
    """

    def loss(x: Any, y: Any, sample_weight: Any) -> Any:
        prediction = model(x, training=False)
        return model.compute_loss(
            x=x, y=y, y_pred=prediction, sample_weight=sample_weight, training=False
        )

    if keras.backend.backend() == "tensorflow":
        return tf.function(loss, autograph=False, reduce_retracing=True)

    def without_gradients(*batch: Any) -> Any:
        batch = keras.tree.map_structure(
            lambda x: None if x is None else ops.convert_to_tensor(x), batch
        )
        torch_backend = keras.backend.backend() == "torch"
        with torch.no_grad() if torch_backend else contextlib.nullcontext():
            return loss(*batch)

    return without_gradients


def _synchronise(model: Any) -> None:
    """Writes the values to the variables. With JAX, `fit` keeps the values elsewhere."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
