"""Learning curves of a tuned Adam, by which losses become steps.

The file `curves.json` beside this one holds them for the tasks of some mixtures:
`python -m meta.tasks --references_of=MIXTURE`, with a mixture that is scored by them.
"""

import numpy as np

from meta.tasks.scoring import references
from meta.tasks.scoring.measured import Measured

KNOTS = (1, 3, 10, 30, 100, 300, 1000)
"""Numbers of steps."""
FRACTIONS = np.diff(np.log(KNOTS)) / np.log(KNOTS[-1])
"""Of the way from the first knot to the last, in logarithms."""

_PROBLEMS, _SEED = 4, 0


def compute(configs, data_dir=None):
    """The losses at the `KNOTS` of each of some tasks that are one program: list of lists."""
    losses = references.adams(configs, KNOTS[-1], _PROBLEMS, data_dir)(_SEED)
    return [envelope(own) for own in np.moveaxis(losses.mean(axis=2), -1, 0)]


def envelope(losses):
    """The lowest loss that any learning rate has reached by each of the `KNOTS`.

    Args:
        losses: `[steps, rates]`, validation losses before each step.

    Returns:
        List of floats, not increasing. A loss at step t is the mean over the steps from
        2/3 t to t.
    """
    losses = np.where(np.isfinite(losses), losses, np.inf)
    # Before the first step, all have the same loss.
    at_knots = [losses[0].mean()]
    at_knots += [losses[2 * knot // 3 : knot].mean(axis=0).min() for knot in KNOTS[1:]]
    return [float(f"{loss:.5g}") for loss in np.minimum.accumulate(at_knots)]


def _parse(values):
    if len(values) != len(KNOTS):
        raise ValueError(f"a curve must have {len(KNOTS)} losses")
    return [float(value) for value in values]


MEASURED = Measured("curves.json", compute, _parse)
"""The losses at the `KNOTS` of tasks."""
