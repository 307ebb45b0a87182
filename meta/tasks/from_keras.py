"""A user's own Keras model and data as a task."""

import dataclasses
import random as python_random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from lopt_keras.types import Tensor
from lopt_keras.validation import check_integer
from meta import random
from meta.tasks import base


def from_keras(
    model: Any,
    loss: Any,
    train: Any,
    validation: Any,
    test: Any = None,
    batch_size: int = 32,
    num_starts: int = 8,
) -> "KerasTask":
    """A task from a Keras model and NumPy data.

    ```python
    task = tasks.from_keras(make_model, "mse", (x, y), (x_val, y_val))
    estimator = estimators.get("pes", rules.MLP(), task)
    ```

    The loss is the one that `model.fit` would report: the mean over the batch, with the
    regularisation losses of the layers, in training mode. Batches are drawn with
    replacement. Problems start from one of `num_starts` copies of the model, each with
    initial values of its own from the layers' initializers, which are the same on every
    machine if all randomness is theirs.

    A Keras model has no particle axis: the particles are a Python loop around it, and
    the time to compile and the size of the program grow with their number. For a
    family with hundreds of particles write a `Task`.

    Args:
        model: function without arguments that returns a model, which is called
            `num_starts` times; or a `Sequential` or functional model, which is cloned.
        loss: Keras loss, its name, or a function of `y_true` and `y_pred`.
        train, validation, test: pairs of inputs (array, or a nest of arrays) and
            targets (array), with as many examples. The test data default to
            the validation data.
        batch_size: examples in a batch.
        num_starts: number of initial values.

    Returns:
        `KerasTask`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected. Among
            the models that are refused are those whose call changes their state:
            batch normalisation in training mode, dropout and other random layers.
    """
    check_integer("batch_size", batch_size, low=1)
    check_integer("num_starts", num_starts, low=1)
    data = {"train": train, "validation": validation, "test": validation if test is None else test}
    data = {split: _examples(split, *_pair(split, pair)) for split, pair in data.items()}
    example = tf.nest.map_structure(lambda x: x[:2], data["train"][0])
    models = [_make(model, example, number) for number in range(num_starts)]
    return KerasTask(models[0], _loss(loss), data, _starts(models), batch_size)


# Of fields that hold objects, which a config cannot.
_HIDDEN = {"in_config": False}


@dataclasses.dataclass(frozen=True, eq=False)
class KerasTask(base.Task):
    """A Keras model as a task, as `from_keras` makes it.

    Args:
        model: whose `stateless_call` computes; its own variables are not touched.
        loss_function: `keras.losses.Loss`.
        data: dict from split to inputs and targets, tensors with the examples first.
        starts: list of `[S, *shape]`, the initial values of the trainable variables.
        batch_size: examples in a batch.
    """

    name: ClassVar = "keras"
    # Of the fields of an instance.
    _frozen: ClassVar[list[Tensor]]

    model: Any = dataclasses.field(metadata=_HIDDEN)
    loss_function: Any = dataclasses.field(metadata=_HIDDEN)
    data: Any = dataclasses.field(metadata=_HIDDEN)
    starts: Any = dataclasses.field(metadata=_HIDDEN)
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        frozen = [tf.constant(v.numpy()) for v in self.model.non_trainable_variables]
        object.__setattr__(self, "_frozen", frozen)

    def init(self, seed: Tensor, num: int, setting: Mapping[str, Any]) -> list[Tensor]:
        start = random.integers((num,), seed, self.starts[0].shape[0])
        return [tf.gather(values, start) for values in self.starts]

    def batch(self, split: str, seed: Tensor, num: int, setting: Mapping[str, Any]) -> Any:
        inputs, targets = self.data[split]
        indices = random.integers((num, self.batch_size), seed, len(targets))
        return tf.nest.map_structure(lambda x: tf.gather(x, indices), (inputs, targets))

    def loss(self, params: Sequence[Tensor], data: Any, setting: Mapping[str, Any]) -> Tensor:
        structure, flat = data, tf.nest.flatten((params, data))
        losses = []
        for own in zip(*map(tf.unstack, flat), strict=True):
            own_params, own_data = own[: len(params)], own[len(params) :]
            inputs, targets = tf.nest.pack_sequence_as(structure, own_data)
            losses.append(self._loss_of_one(own_params, inputs, targets))
        return tf.stack(losses)

    def _loss_of_one(self, params: Sequence[Tensor], inputs: Any, targets: Any) -> Tensor:
        outputs, _, penalties = self.model.stateless_call(
            params, self._frozen, inputs, training=True, return_losses=True
        )
        return sum(penalties, self.loss_function(targets, outputs))

    def get_config(self) -> dict[str, Any]:
        """The name of the model and the batch size: not enough to make the task again."""
        return {"model": self.model.name, **super().get_config()}


class _Mean(keras.losses.Loss):
    """The mean of a function of targets and outputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(name=getattr(function, "__name__", None))
        self.function = function

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        # One number for each example, as a vector or as a column.
        if len(y_pred.shape) == len(y_true.shape) + 1 and y_pred.shape[-1] == 1:
            y_true = keras.ops.expand_dims(y_true, -1)
        return self.function(y_true, y_pred)


def _loss(loss: Any) -> keras.losses.Loss:
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss
    if not callable(loss):
        raise TypeError(
            f"`loss` must be a Keras loss, its name or a function. Received: loss={loss!r}"
        )
    return _Mean(loss)


def _pair(split: str, pair: Any) -> Any:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"`{split}` must be a pair of inputs and targets. Received: {type(pair)}")
    return pair


def _examples(split: str, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Tensors of inputs and targets, floats as float32."""
    inputs, targets = tf.nest.map_structure(_tensor, (inputs, targets))
    counts = [array.shape[:1].as_list() for array in tf.nest.flatten((inputs, targets))]
    if tf.nest.is_nested(targets) or [] in counts or counts != counts[:1] * len(counts):
        raise ValueError(
            f"`{split}` must hold arrays of inputs and one of targets, with as many examples. "
            f"Received numbers of examples: {counts}"
        )
    if counts[0] == [0]:
        raise ValueError(f"`{split}` must hold at least one example. Received: none")
    return inputs, targets


def _tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    return tf.constant(array.astype("float32") if array.dtype.kind == "f" else array)


def _make(model: Any, example: Any, number: int) -> keras.Model:
    """A copy of the model with initial values of its own, checked on an example."""
    states = python_random.getstate(), np.random.get_state()
    # Initializers without a seed draw one from Python's generator.
    python_random.seed(number)
    np.random.seed(number)
    try:
        copy = _clone(model) if isinstance(model, keras.Model) else model()
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])
    if not isinstance(copy, keras.Model):
        raise TypeError(f"`model` must return a Keras model. Received: {copy!r}")
    if not copy.built:
        raise ValueError(
            "`model` must be built, as with a `keras.Input` as its first layer. "
            f"Received: {copy.name!r}, which is not"
        )
    _check_state(copy, example)
    return copy


def _clone(model: Any) -> keras.Model:
    try:
        return keras.models.clone_model(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "`model` must be a function that makes the model, as only Sequential and "
            f"functional models can be cloned. Received: model={model!r}"
        ) from error


def _check_state(model: keras.Model, example: Any) -> None:
    variables = model.trainable_variables
    if not variables or any(v.dtype != "float32" for v in variables):
        raise ValueError(
            "`model` must have trainable variables, all float32. Received: "
            f"{[(v.path, v.dtype) for v in variables]}"
        )
    trainable = [v.value for v in variables]
    before = [v.value for v in model.non_trainable_variables]
    _, after = model.stateless_call(trainable, before, example, training=True)
    pairs = zip(model.non_trainable_variables, before, after, strict=True)
    changed = [v.path for v, old, new in pairs if not np.array_equal(old, new)]
    if changed:
        raise ValueError(
            "`model` must not change state when it is called in training mode, as batch "
            f"normalisation and dropout do. Received: {model.name!r}, which changes {changed}"
        )


def _starts(models: Sequence[keras.Model]) -> list[Tensor]:
    """The trainable variables of all models: list of `[S, *shape]`."""
    first, *others = models
    for model in others:
        shapes = [v.shape for v in model.variables]
        if shapes != [v.shape for v in first.variables]:
            raise ValueError(
                f"`model` must return the same model each time. Received shapes {shapes}, and "
                f"{[v.shape for v in first.variables]}"
            )
        pairs = zip(first.non_trainable_variables, model.non_trainable_variables, strict=True)
        if differing := [mine.path for mine, its in pairs if not np.array_equal(mine, its)]:
            raise ValueError(
                "`model` must give variables that are not trained the same values each time. "
                f"Received: {differing}, which differ"
            )
    columns = zip(*(model.trainable_variables for model in models), strict=True)
    return [tf.constant(np.stack([v.numpy() for v in column])) for column in columns]
