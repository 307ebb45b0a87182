"""The types of what rules, optimizers and exports exchange. Shapes are in the docstrings."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Tensor: TypeAlias = Any
"""A tensor of the backend that Keras runs on: the three backends have no type in common."""

Array: TypeAlias = np.ndarray
"""A NumPy array."""

Arrays: TypeAlias = dict[str, np.ndarray]
"""Named arrays, such as one theta."""

Tensors: TypeAlias = dict[str, Tensor]
"""Named tensors, such as a state."""

Theta: TypeAlias = Mapping[str, Tensor]
"""Meta-parameters by name, with a leading particle axis."""

Shape: TypeAlias = Sequence[Any]
"""Of a tensor: integers, and None where a size is not known."""

Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""By name."""
