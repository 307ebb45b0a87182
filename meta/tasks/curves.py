"""Learning curves of a tuned Adam, by which losses become steps.

The file `curves.json` beside this one holds them for the tasks of some mixtures:
`python -m meta.tasks --references_of=MIXTURE`, with a mixture that is scored by them.
"""

import functools
import json
import os

import numpy as np
import tqdm

from meta import run_directory
from meta.tasks import distribution, references

FILE = os.path.join(os.path.dirname(__file__), "curves.json")
KNOTS = (1, 3, 10, 30, 100, 300, 1000)
"""Numbers of steps."""
SHARES = np.diff(np.log(KNOTS)) / np.log(KNOTS[-1])
"""Of the way from the first knot to the last, in logarithms."""

_PROBLEMS, _SEED = 4, 0


@functools.cache
def load(file=FILE):
    """Dict from key to the losses at the `KNOTS`, empty if there is no such file."""
    if not os.path.exists(file):
        return {}
    with open(file, encoding="utf-8") as f:
        return json.load(f)


def complete(configs, data_dir=None, file=FILE):
    """Computes what the file lacks for some tasks, as `references.complete` does."""
    found = dict(load(file))
    missing = {references.identify(c): c for c in configs if references.identify(c) not in found}
    groups = distribution.by_program(missing.values())
    for group in tqdm.tqdm(groups.values(), unit="program", disable=not groups):
        losses = references.adams(group, KNOTS[-1], _PROBLEMS, data_dir)(_SEED)
        for config, own in zip(group, np.moveaxis(losses.mean(axis=2), -1, 0), strict=True):
            found[references.identify(config)] = envelope(own)
        run_directory.write_json(file, found)
    load.cache_clear()


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
