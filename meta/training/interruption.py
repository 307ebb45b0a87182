"""Ctrl-C, put off while something must happen completely or not at all."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """An interruption in this scope takes effect at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals arrive in the main thread only.
        return
    arrived: list[Any] = []
    previous = signal.signal(signal.SIGINT, lambda *args: arrived.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if arrived and callable(previous):
        previous(*arrived[0])
