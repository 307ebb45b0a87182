"""Files that are written completely or not at all."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def whole(file: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name to write a file under; it is renamed when the block ends well.

    Otherwise it is removed, and an earlier file stays as it was.

    Args:
        file: destination, replaced if it exists.

    Raises:
        OSError: naming the file, which a full disk's own error does not.
    """
    temporary = f"{os.fspath(file)}.tmp"
    try:
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{os.fspath(file)!r} cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # Renamed, or it never came to be.
            os.remove(temporary)
