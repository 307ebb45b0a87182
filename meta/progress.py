"""What a progress bar shows during a long step, and an estimate of the time that remains."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
"""Without tqdm's own estimate, which takes compilation for steps."""


@contextlib.contextmanager
def telling(bar: tqdm.tqdm, text: str) -> Iterator[None]:
    """Shows on a bar what is going on, and for how many seconds, while the block runs.

    On a terminal each second, in a log file each half a minute.
    """
    ended, start = threading.Event(), time.perf_counter()

    def tell() -> None:
        while True:
            bar.set_postfix_str(f"{text}, {time.perf_counter() - start:.0f} s so far")
            if ended.wait(1.0 if sys.stderr.isatty() else 30.0):
                return

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        bar.set_postfix_str("", refresh=False)


class Estimate:
    """How long the rest of a run will take, of which each step is one of several programs.

    The first step of a program compiles it, and counts apart.

    Args:
        weights: how often each program is drawn, in any unit.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._fractions = np.asarray(weights, float) / np.sum(weights)
        self._seconds = np.full(len(self._fractions), np.nan)
        self._compilations: dict[int, float] = {}

    @property
    def num_compiled(self) -> int:
        """Programs of which a step was taken."""
        return len(self._compilations)

    def is_compiled(self, program: int) -> bool:
        """Whether a step of that program was taken."""
        return program in self._compilations

    def record(self, program: int, seconds: float) -> None:
        """A step of a program, an index, took so many seconds."""
        if program not in self._compilations:
            self._compilations[program] = seconds
        elif np.isnan(self._seconds[program]):
            self._seconds[program] = seconds
        else:
            self._seconds[program] += 0.2 * (seconds - self._seconds[program])

    def remaining(self, num_steps: int) -> float:
        """Seconds that so many steps will take; NaN as long as no program took two."""
        known = ~np.isnan(self._seconds)
        if not known.any():
            return np.nan
        fractions = self._fractions[known]
        mean = (fractions * self._seconds[known]).sum() / fractions.sum()
        steps = num_steps * (self._fractions * np.where(known, self._seconds, mean)).sum()
        new = [i for i in range(len(self._fractions)) if i not in self._compilations]
        met = 1.0 - (1.0 - self._fractions[new]) ** num_steps
        return float(steps + met.sum() * np.mean(list(self._compilations.values())))


def remaining_text(seconds: float) -> str:
    """`about 3:20 left`, or nothing if it is not known."""
    return "" if np.isnan(seconds) else f"about {tqdm.tqdm.format_interval(seconds)} left"
