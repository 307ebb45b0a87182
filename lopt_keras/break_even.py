"""How long a training must be for XLA to pay."""

import math
from collections.abc import Iterable

from lopt_keras.types import Shape

# What `benchmarks/performance/break_even.py` measures, for a rule that fuses tensors, fitted by
# hand over nine models of 4 to 214 tensors. Compilation takes these seconds ...
_SECONDS = 0.9
_SECONDS_OF_TENSOR = 0.018
# ... and a step without it takes so many more.
_SECONDS_OF_STEP = 1.3e-3
_SECONDS_OF_STEP_OF_TENSOR = 7e-5
_SECONDS_OF_STEP_OF_PARAMETER = 6.5e-9


def num_steps(shapes: Iterable[Shape]) -> int:
    """The number of steps from which on the compilation of the optimizer's step pays, an int.

    A function of the model alone, so that a training that is resumed, or run again on another
    machine, is compiled or not as before.

    Args:
        shapes: of the trained variables, tuples of integers.
    """
    sizes = [math.prod(shape) for shape in shapes]
    seconds = _SECONDS + _SECONDS_OF_TENSOR * len(sizes)
    of_step = _SECONDS_OF_STEP + _SECONDS_OF_STEP_OF_TENSOR * len(sizes)
    of_step += _SECONDS_OF_STEP_OF_PARAMETER * sum(sizes)
    return math.ceil(seconds / of_step)
