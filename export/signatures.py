"""The signatures of an export: the rule's step without any Python of ours."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from lopt_keras import gating
from lopt_keras.rules.base import State, UpdateRule
from lopt_keras.signals import Signals
from lopt_keras.types import Shape, Tensor, Tensors, Theta

RANKS = range(6)
"""The ranks of tensors for which an export has signatures."""

_STATE, _SHARED, _AVERAGE = "state_", "shared_", "average_"


def of_ranks(rule: UpdateRule, theta: Theta) -> dict[str, Any]:
    """Those for one tensor of any shape, for each rank that the rule allows: concrete functions.

    Args:
        rule: `UpdateRule`.
        theta: dict of variables.
    """
    found: dict[str, Any] = {}
    for rank in _exported_ranks(rule):
        found |= _of_rank(rule, theta, rank)
    return found


def of_model(
    rule: UpdateRule, theta: Theta, shapes: Sequence[Shape], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Those for all tensors of one model at once: dict of two concrete functions.

    A gradient that is not finite, or whose square float32 cannot sum, leaves parameters and state
    as they are.

    Args:
        rule: `UpdateRule`, of any kind.
        theta: dict of variables.
        shapes: of the tensors, in their order.
        names: of the tensors, as rules read them. By default they have none.
    """
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    parameters = {f"parameter_{i}": spec for i, spec in enumerate(specs)}
    gradients = {f"gradient_{i}": spec for i, spec in enumerate(specs)}
    averages = {f"{_AVERAGE}{i}": spec for i, spec in enumerate(specs)} if rule.averages else {}
    # In a graph, where only shapes count: nothing is allocated.
    with tf.Graph().as_default():
        zeros = [tf.zeros([1, *shape]) for shape in shapes]
        particle = {k: tf.zeros([1, *v.shape]) for k, v in theta.items()}
        example = rule.init_state(particle, zeros, names)
        states = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in _flat(example).items()}
    signals = {name: tf.TensorSpec([], tf.float32) for name in rule.signals}

    @tf.function(autograph=False)
    def init_state(**given: Tensor) -> Tensors:
        params = [given[name] for name in parameters]
        state = rule.init_state(_single(theta), [param[None] for param in params], names)
        starts = [tf.identity(param) for param in params if rule.averages]
        return {**_flat(state), **dict(zip(averages, starts, strict=True))}

    @tf.function(autograph=False)
    def update(step: Tensor, **given: Tensor) -> Tensors:
        params = [given[name] for name in parameters]
        changes, state = rule.update(
            _single(theta),
            _nested(example, given),
            [given[name][None] for name in gradients],
            [param[None] for param in params],
            Signals.silent(step[None], **{name: given[name][None] for name in rule.signals}),
            names,
        )
        new = [param + change[0] for param, change in zip(params, changes, strict=True)]
        outputs = {**dict(zip(parameters, new, strict=True)), **_flat(state)}
        if rule.averages:
            weight = rule.average_weight(state)[0]
            for name, param in zip(averages, new, strict=True):
                outputs[name] = given[name] + weight * (param - given[name])
        usable = gating.gradients_are_usable([given[name][None] for name in gradients])[0]
        return {name: tf.where(usable, x, given[name]) for name, x in outputs.items()}

    return {
        "init_state": init_state.get_concrete_function(**parameters),
        "update": update.get_concrete_function(
            step=tf.TensorSpec([], tf.int32),
            **parameters,
            **gradients,
            **states,
            **averages,
            **signals,
        ),
    }


def _flat(state: State) -> Tensors:
    """A state of one particle by the names of the signatures."""
    return {
        **{
            f"{_STATE}{i}_{name}": x[0]
            for i, tensor in enumerate(state.tensors)
            for name, x in tensor.items()
        },
        **{_SHARED + name: x[0] for name, x in state.shared.items()},
    }


def _nested(example: State, given: Tensors) -> State:
    """The inverse of `_flat`, for a state like the example."""
    tensors = [
        {name: given[f"{_STATE}{i}_{name}"][None] for name in tensor}
        for i, tensor in enumerate(example.tensors)
    ]
    return State(tensors, {name: given[_SHARED + name][None] for name in example.shared})


def _exported_ranks(rule: UpdateRule) -> Sequence[int]:
    if rule.mixes_tensors or rule.fuses_tensors:
        return ()
    if not rule.state_follows_axes:
        return range(2)
    return RANKS if rule.permutes_with_axes or rule.flattens else range(3)


def _of_rank(rule: UpdateRule, theta: Theta, exported_rank: int) -> dict[str, Any]:
    """The two concrete functions for tensors of one rank."""
    tensor = tf.TensorSpec([None] * exported_rank, tf.float32)
    rank = min(exported_rank, 2) if rule.flattens else exported_rank
    sorted_shapes, shared_shapes = _state_shapes(rule, theta, rank)
    # Which axes of a state are of size 1 depends on sizes not known here.
    specs = {
        _STATE + name: tf.TensorSpec([*shape[: len(shape) - rank], *[None] * rank], tf.float32)
        for name, shape in sorted_shapes.items()
    }
    specs |= {_SHARED + k: tf.TensorSpec(shape, tf.float32) for k, shape in shared_shapes.items()}
    specs |= {name: tf.TensorSpec([], tf.float32) for name in rule.signals}

    def named(state: State, inverse: Tensor) -> Tensors:
        (tensor_state,), shared = state
        return {
            **{_STATE + name: _permute(x[0], inverse) for name, x in tensor_state.items()},
            **{_SHARED + name: x[0] for name, x in shared.items()},
        }

    @tf.function(autograph=False)
    def init_state(parameter: Tensor) -> Tensors:
        parameter = _as_rank(parameter, rank)
        order, inverse = _orders(parameter)
        return named(rule.init_state(_single(theta), [_permute(parameter, order)[None]]), inverse)

    @tf.function(autograph=False)
    def update(parameter: Tensor, gradient: Tensor, step: Tensor, **others: Any) -> Tensors:
        shape = tf.shape(parameter)
        parameter, gradient = _as_rank(parameter, rank), _as_rank(gradient, rank)
        order, inverse = _orders(parameter)
        tensor_state = {
            name: tf.ensure_shape(_permute(others[_STATE + name], order), sizes)[None]
            for name, sizes in sorted_shapes.items()
        }
        shared = {name: others[_SHARED + name][None] for name in shared_shapes}
        (change,), state = rule.update(
            _single(theta),
            State([tensor_state], shared),
            [_permute(gradient, order)[None]],
            [_permute(parameter, order)[None]],
            Signals.silent(step[None], **{name: others[name][None] for name in rule.signals}),
        )
        parameter = tf.reshape(parameter + _permute(change[0], inverse), shape)
        return {"parameter": parameter, **named(state, inverse)}

    return {
        f"init_state_rank_{exported_rank}": init_state.get_concrete_function(parameter=tensor),
        f"update_rank_{exported_rank}": update.get_concrete_function(
            parameter=tensor, gradient=tensor, step=tf.TensorSpec([], tf.int32), **specs
        ),
    }


def _as_rank(x: Tensor, rank: int) -> Tensor:
    """A tensor of that rank: where it is less, a matrix of all axes but the last by the last."""
    if x.shape.rank == rank:
        return x
    return tf.reshape(x, [-1, tf.shape(x)[-1]])


def _single(theta: Theta) -> Tensors:
    """Theta as one particle."""
    return {name: value[None] for name, value in theta.items()}


def _state_shapes(
    rule: UpdateRule, theta: Theta, rank: int
) -> tuple[dict[str, list[int | None]], dict[str, Any]]:
    """The static shapes of the states of a tensor with sorted dimensions of open size.

    Returns:
        A dict for the tensor's own state, and one for the shared state.
    """
    sizes = range(2, rank + 2)
    (example,), shared = rule.init_state(_single(theta), [tf.zeros([1, *sizes])])
    tensor = {
        name: [
            size if i < len(value.shape) - 1 - rank or size == 1 else None
            for i, size in enumerate(value.shape[1:])
        ]
        for name, value in example.items()
    }
    return tensor, {name: value.shape[1:] for name, value in shared.items()}


def _orders(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The permutation that sorts the dimensions by size, and its inverse.

    A rule chooses axes by size when it is traced, and the sizes of a signature are
    not known then. It is therefore given tensors with sorted dimensions.
    """
    order = tf.argsort(tf.shape(parameter), stable=True)
    return order, tf.argsort(order)


def _permute(x: Tensor, order: Tensor) -> Tensor:
    """`x [*features, *shape]` with the dimensions of `shape` permuted."""
    leading = x.shape.rank - order.shape[0]
    return tf.transpose(x, tf.concat([tf.range(leading), order + leading], axis=0))
