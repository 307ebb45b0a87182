"""The directory of a meta-training run: which run it belongs to, and which process."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from export import checkpoint, locks
from meta import provenance

RUN_FILE = checkpoint.RUN_FILE
LOCK_FILE = "lock"
RENAMED = {"horizon_told": "horizon_known", "validation_told": "validation_known"}
"""What flags were called before 0.1.0, as runs that began then have them."""
_EXPORT = "export"
_SIGN_OF_LIFE, _SILENCE = 30.0, 180.0
"""Seconds between signs of life of who holds a lock, and after which it counts as gone."""


@contextlib.contextmanager
def lock(out_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes out of a directory.

    The file `lock` in it says which process of which machine is at work. That process touches
    it every half a minute. The lock has no effect if the process has ended, or if it is on
    another machine and has not touched the file for three minutes.

    Args:
        out_dir: the directory, made if there is none; removed again if nothing is put there.

    Raises:
        ValueError: if another process is at work there, or nothing can be written there.
    """
    out_dir, file = os.fspath(out_dir), os.path.join(out_dir, LOCK_FILE)
    check_writable(out_dir)
    try:
        os.makedirs(out_dir, exist_ok=True)
        descriptor = locks.acquire(file, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ValueError(f"`{out_dir}` cannot be written to: {error}") from error
    descriptor = _check_free(out_dir, file, descriptor)
    ended = threading.Event()
    try:
        own = {"host": socket.gethostname(), "process": os.getpid(), "since": time.ctime()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(own).encode(), 0)
        threading.Thread(target=_show_life, args=(file, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # Only where nothing else is in the directory.
            if os.listdir(out_dir) == [LOCK_FILE]:
                os.remove(file)
                os.rmdir(out_dir)
        os.close(descriptor)


def _check_free(out_dir: str, file: str, descriptor: int | None) -> int:
    """The descriptor; raises if another process holds the lock, as far as that can be known."""
    try:
        holder = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
        host, process, since = (holder[name] for name in ("host", "process", "since"))
    except (OSError, ValueError, TypeError, KeyError):
        host, process, since = "?", "?", "?"  # Not written yet, or released.
    # Some file systems do not tell one machine of the locks of another.
    elsewhere = host not in ("?", socket.gethostname())
    alive = elsewhere and time.time() - os.path.getmtime(file) < _SILENCE
    if descriptor is None or alive:
        if descriptor is not None:
            os.close(descriptor)
        raise ValueError(
            f"`{out_dir}` is in use by process {process} on {host}, since {since}. "
            "Wait until it ends, or choose another directory."
        )
    return descriptor


def _show_life(file: str, ended: threading.Event) -> None:
    while not ended.wait(_SIGN_OF_LIFE):
        with contextlib.suppress(OSError):
            os.utime(file)


def check_writable(directory: str | os.PathLike[str], flag: str | None = None) -> None:
    """Raises unless files can be written to a directory that exists, or that can be made.

    Args:
        directory: path.
        flag: which flag or argument names it, for the message.

    Raises:
        ValueError: naming the directory and what is in the way.
    """
    flag = "" if flag is None else f"--{flag}: "
    place = os.path.abspath(os.fspath(directory))
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise ValueError(f"{flag}`{directory}` cannot be a directory: {place!r} is none.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}`{directory}` cannot be written to: no permission for {place!r}.")


def check(out_dir: Any, run: dict[str, Any]) -> dict[str, Any] | None:
    """Raises if the directory belongs to another run.

    A directory without checkpoints and without an export belongs to nobody yet: whatever
    `run.json` it has is of a run that failed before its first checkpoint.

    Args:
        out_dir, run: as for `claim`; the references may not be known yet.

    Returns:
        What the directory's `run.json` holds, None if it belongs to nobody.

    Raises:
        ValueError: as for `claim`.
    """
    taken = checkpoint.has_checkpoints(out_dir)
    if not taken and not os.path.lexists(os.path.join(out_dir, _EXPORT)):
        return None
    earlier = checkpoint.read_run(out_dir)
    if earlier is None:
        if not taken:
            return None
        raise ValueError(
            f"`--out_dir={out_dir}` holds checkpoints but no {RUN_FILE}, which says what run they "
            "are of. Choose another --out_dir."
        )
    _check_flags(out_dir, with_new_names(earlier["flags"]), run["flags"])
    known, own = (content.get("references_sha256") for content in (earlier, run))
    if None not in (known, own) and known != own:
        raise ValueError(
            f"`--out_dir={out_dir}` holds a run on other reference losses (sha256 {known}) than "
            f"those of its tasks now ({own}). Give the --data_dir that it began with, or another "
            "--out_dir."
        )
    return earlier


def claim(out_dir: Any, run: dict[str, Any]) -> dict[str, Any]:
    """Makes the directory this run's, or checks that it already is.

    Writes `run.json`: the content of `run`, and `commits`, the revisions of this
    source tree that worked on the run (none outside of a git checkout).

    Args:
        out_dir: the directory, made if there is none.
        run: dict that JSON can hold; `run["flags"]` is a flat dict that must be
            the same whenever the run is resumed, and so must be `run["references_sha256"]`,
            if it is given.

    Returns:
        What it has written: dict.

    Raises:
        ValueError: if the directory belongs to a run with other flags; the
            message names the first that differs. If its `run.json` is damaged or missing.
    """
    os.makedirs(out_dir, exist_ok=True)
    earlier = check(out_dir, run)
    commits = [] if earlier is None else earlier["commits"]
    current = provenance.commit()
    if current and current not in commits:
        commits = [*commits, current]
    content = {**run, "commits": commits}
    provenance.write_json(os.path.join(out_dir, RUN_FILE), content)
    return content


def with_new_names(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags, a dict, under the names that they have now."""
    return {RENAMED.get(name, name): value for name, value in flags.items()}


def _check_flags(out_dir: Any, earlier: dict[str, Any], flags: dict[str, Any]) -> None:
    for name in sorted(set(earlier) | set(flags)):
        if earlier.get(name) != flags.get(name):
            raise ValueError(
                f"`--out_dir={out_dir}` holds a run with --{name}={earlier.get(name)!r}. "
                f"Received: --{name}={flags.get(name)!r}. "
                "Give the same flags to resume it, or another --out_dir."
            )
