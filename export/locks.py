"""Locks that end with the process that holds them, however it ends."""

import os

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out there.
    fcntl = None  # type: ignore[assignment]


def acquire(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int | None:
    """Locks a file or a directory for this process, if no other has it.

    Args:
        path: what to lock.
        flags: of `os.open`.

    Returns:
        The open descriptor, which holds the lock until it is closed; None if another process
        holds it.

    Raises:
        OSError: if the path cannot be opened.
    """
    descriptor = os.open(path, flags, 0o666)
    if fcntl is None:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # A file system without locks.
        return descriptor
    return descriptor
