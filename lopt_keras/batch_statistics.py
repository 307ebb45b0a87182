"""Means and variances of batch normalisation, computed anew for the weights of a model."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from lopt_keras import keras_private
from lopt_keras.validation import check_integer
from lopt_keras.validation_batches import ValidationBatches

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "torch":
    import torch


class BatchStatistics:
    """The statistics of a model's batch normalisation, from data, for the weights it has now.

    During training, each `keras.layers.BatchNormalization` keeps moving averages of means and
    variances, of which a model makes use afterwards. They are of earlier weights: of the last
    `1 / (1 - momentum)` steps, 100 by default, and of the start, where a training is short. The
    fewer steps a training has, and the larger these are, the less they fit. And the average of
    the weights has statistics that no step has seen.

    >>> BatchStatistics((x, y)).refresh(model)

    Args:
        data: training data as `fit` takes validation data: arrays in a tuple, `(x,)` or
            `(x, y)`, or batches, as a `tf.data.Dataset`.
        batch_size: rows of a batch, if `data` are arrays. That of the training fits best.
        num_batches: to compute the statistics from, at most.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Izmailov et al., arXiv 1803.05407, section 3.2 (`bn_update`).
    """

    def __init__(self, data: Any, batch_size: int = 32, num_batches: int = 100) -> None:
        check_integer("batch_size", batch_size, low=1)
        check_integer("num_batches", num_batches, low=1)
        self._batches = ValidationBatches(data, batch_size)
        self._num_batches = num_batches
        self._model: Any = None

    def refresh(self, model: Any) -> None:
        """Sets the moving means and variances to the means over batches. Nothing else changes."""
        layers = [
            layer
            for layer in keras_private.flatten_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        moving = {id(v) for layer in layers for v in layer.non_trainable_variables}
        # Of dropout, for one, the state of the random numbers.
        others = [v for v in model.non_trainable_variables if id(v) not in moving]
        values = [ops.convert_to_numpy(v) for v in others]
        if self._model is not model:
            self._model, self._forward = model, _forward_pass(model, layers)
        momenta = [layer.momentum for layer in layers]
        self._batches.start(0)
        try:
            for k in range(min(self._num_batches, self._batches.num_batches or self._num_batches)):
                batch = self._batches.next()
                if batch is not None:
                    self._forward(_tensors(batch[0]), ops.convert_to_tensor(k / (k + 1), "float32"))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
            for variable, value in zip(others, values, strict=True):
                variable.assign(value)


def _forward_pass(model: Any, layers: list[Any]) -> Callable[[Any, Any], None]:
    """The forward pass of training, of a batch, with such a momentum of the layers."""

    def forward(x: Any, momentum: Any) -> None:
        for layer in layers:
            layer.momentum = momentum
        model(x, training=True)

    if keras.backend.backend() == "tensorflow":
        # The momentum is an argument, as it changes from batch to batch.
        return tf.function(forward, autograph=False, reduce_retracing=True)
    return torch.no_grad()(forward) if keras.backend.backend() == "torch" else forward


def _tensors(x: Any) -> Any:
    return keras.tree.map_structure(ops.convert_to_tensor, x)
