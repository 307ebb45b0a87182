"""What a comparison lacks, computed by several processes of this machine."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import tensorflow as tf
import tqdm

from meta.evaluation import benchmark
from meta.evaluation.benchmark import Settings
from meta.evaluation.candidates import Candidate
from meta.evaluation.store import Store
from meta.evaluation.suite import Entry
from meta.tasks.sampling import distribution

MOST_PROGRAMS = 16
"""Architectures that one process computes. XLA keeps each compiled program until its process ends.
Those of 35 architectures took 24,406 mappings of memory (`wc -l /proc/PID/maps`). Linux allows
65,530, and the process ends with a segmentation fault beyond."""


class ProcessLost(RuntimeError):
    """A process has ended before its work was done."""


def fill(
    entries: Sequence[Entry],
    candidates: Sequence[Candidate],
    settings: Settings,
    cache_dir: str,
    data_dir: str | None,
    num_workers: int,
) -> None:
    """Computes what a store lacks for `benchmark.run`.

    Tasks of one architecture share compiled programs, so one process computes all of them.
    Steps are timed at the end, by one process at a time, as processes disturb each other.

    Args:
        entries, candidates, settings, data_dir: as for `benchmark.run`.
        cache_dir: of the `Store`.
        num_workers: processes; no more are started than there are architectures.

    Raises:
        ProcessLost: if a process is lost. The store keeps what was computed.
    """
    groups = distribution.by_program([entry.config for entry in entries])
    by_key = {entry.config.key: entry for entry in entries}
    # Those with the most tasks first: none of them then is what all others wait for.
    parts = [[by_key[config.key] for config in configs] for configs in groups.values()]
    parts.sort(key=len, reverse=True)
    num_workers = min(num_workers, len(parts))
    threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    untimed = settings._replace(wall_clock=settings.wall_clock and num_workers == 1)
    common = candidates, untimed, cache_dir, data_dir
    at_once = MOST_PROGRAMS * num_workers
    try:
        with tqdm.tqdm(total=len(entries), unit="task", desc=f"{num_workers} processes") as bar:
            for first in range(0, len(parts), at_once):
                with _executor(num_workers, threads) as executor:
                    some = parts[first : first + at_once]
                    futures = {executor.submit(_compute, part, *common): part for part in some}
                    for future in concurrent.futures.as_completed(futures):
                        future.result()
                        bar.update(len(futures[future]))
    except BrokenProcessPool as error:
        raise ProcessLost(
            "A process has ended before its work was done, perhaps for lack of memory. What was "
            "computed is kept: run again, with a smaller --num_workers. "
            f"Received: --num_workers={num_workers}"
        ) from error
    if settings != untimed:
        fill(entries, candidates, settings, cache_dir, data_dir, num_workers=1)


def are_too_many(entries: Sequence[Entry]) -> bool:
    """Whether the tasks have more architectures than one process can compute."""
    return len(distribution.by_program([entry.config for entry in entries])) > MOST_PROGRAMS


@contextlib.contextmanager
def _executor(num_workers: int, threads: int) -> Iterator[concurrent.futures.Executor]:
    """Processes that end with the block. If it is left by an error, nobody waits for them."""
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(num_workers, context, _begin, (threads,))
    try:
        yield executor
    except BaseException:
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _compute(
    entries: Sequence[Entry],
    candidates: Sequence[Candidate],
    settings: Settings,
    cache_dir: str,
    data_dir: str | None,
) -> None:
    benchmark.run(entries, candidates, settings, Store(cache_dir), data_dir, quiet=True)


def _begin(threads: int) -> None:
    """Prepares a process that computes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's matter.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # It runs in a process that was started here.
    parent.join()
    os._exit(1)
