"""The order of the three parts of a step, wherever each of them runs."""

from collections.abc import Callable, Sequence
from typing import Any

from lopt_keras.types import Tensors


def take(
    rule: Any,
    count: int,
    summarise: Callable[[int], tuple[Tensors, Tensors]],
    coordinate: Callable[[Sequence[Tensors]], tuple[Tensors, Sequence[Tensors]]],
    update: Callable[[int, Tensors | None, Tensors], Any],
) -> tuple[Tensors, list[Any]]:
    """Summarises each tensor if the rule mixes tensors, coordinates once, updates each tensor.

    `UpdateRule.update` takes its steps by this, and `LearnedOptimizer`, which compiles each part.

    Args:
        rule: `UpdateRule`.
        count: number of tensors.
        summarise: function from the index of a tensor to its state, as far as it is known then,
            and its summary.
        coordinate: function from all summaries to the shared state and the message to each tensor.
        update: function from the index of a tensor, its state from `summarise` (None of a rule
            that mixes no tensors), and its message, to what is wanted of it.

    Returns:
        The shared state, and the list of what `update` gave.
    """
    states: Sequence[Tensors | None] = [None] * count
    summaries: Sequence[Tensors] = [{}] * count
    if rule.mixes_tensors:
        states, summaries = zip(*[summarise(i) for i in range(count)], strict=True)
    shared, messages = coordinate(summaries)
    results = zip(range(count), states, messages, strict=True)
    return shared, [update(i, state, message) for i, state, message in results]
