"""Recurrent layers with weights of their own for every particle.

Gates lie one after the other in the last axis of the weights, in the order of Keras.

Shapes: P particles, B examples, T steps, H units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from lopt_keras.types import Tensor
from meta.tasks.networks import layers


class Cell(NamedTuple):
    """A recurrent cell.

    Attributes:
        num_gates: the weights have `num_gates * H` outputs.
        num_states: how many `[P, B, H]` the cell remembers; the first is its output.
        step: function from what the input contributes and what the output of before
            does, both `[P, B, num_gates * H]`, and the list of states, to new states.
    """

    num_gates: int
    num_states: int
    step: Any


def _rnn(inputs: Tensor, recurrent: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    return [tf.tanh(inputs + recurrent)]


def _gru(inputs: Tensor, recurrent: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    update_x, reset_x, new_x = tf.split(inputs, 3, axis=-1)
    update_h, reset_h, new_h = tf.split(recurrent, 3, axis=-1)
    update, reset = tf.sigmoid(update_x + update_h), tf.sigmoid(reset_x + reset_h)
    new = tf.tanh(new_x + reset * new_h)
    return [new + update * (states[0] - new)]


def _lstm(inputs: Tensor, recurrent: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    enter, forget, new, leave = tf.split(inputs + recurrent, 4, axis=-1)
    memory = tf.sigmoid(forget) * states[1] + tf.sigmoid(enter) * tf.tanh(new)
    return [tf.sigmoid(leave) * tf.tanh(memory), memory]


CELLS = {"rnn": Cell(1, 1, _rnn), "gru": Cell(3, 1, _gru), "lstm": Cell(4, 2, _lstm)}
"""By name. Sources: Elman 1990; Cho et al., arXiv 1406.1078, in the variant that resets
after the matrix product; Hochreiter and Schmidhuber 1997, with forget gate."""


def forget_bias(units: int) -> Tensor:
    """Bias of an LSTM, `[4 * units]`, that is 1 for the forget gate: it remembers at first."""
    return tf.concat([tf.zeros(units), tf.ones(units), tf.zeros(2 * units)], axis=0)


def recurrent_layer(x: Tensor, cell: str, weights: Sequence[Tensor]) -> Tensor:
    """The outputs of a recurrent cell at all steps, from states of zero.

    Args:
        x: `[P, B, T, inputs]`.
        cell: name, one of `CELLS`.
        weights: `(input weights [P, inputs, gates * H], bias [P, gates * H],
            recurrent weights [P, H, gates * H], recurrent bias [P, gates * H])`. The
            last may be None, for zero: only in "gru" does it do what the other cannot.

    Returns:
        `[P, B, T, H]`.
    """
    kernel, bias, recurrent_kernel, recurrent_bias = weights
    particles, examples, length, _ = x.shape
    units = recurrent_kernel.shape[1]
    step, num_states = CELLS[cell].step, CELLS[cell].num_states
    by_step = layers.transpose(layers.dense(x, kernel, bias), (2, 0, 1, 3))

    def body(
        i: Tensor, states: Sequence[Tensor], outputs: tf.TensorArray
    ) -> tuple[Tensor, Sequence[Tensor], tf.TensorArray]:
        recurrent = tf.matmul(states[0], recurrent_kernel)
        if recurrent_bias is not None:
            recurrent += recurrent_bias[:, None]
        states = step(by_step[i], recurrent, states)
        return i + 1, states, outputs.write(i, states[0])

    zeros = [tf.zeros((particles, examples, units))] * num_states
    empty = tf.TensorArray(tf.float32, length, element_shape=zeros[0].shape)
    *_, outputs = tf.while_loop(
        lambda i, *_: i < length,
        body,
        (tf.constant(0), zeros, empty),
        maximum_iterations=length,
    )
    return layers.transpose(outputs.stack(), (1, 2, 0, 3))
