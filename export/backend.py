"""TensorFlow without the messages for its own developers.

It reports the processor, missing GPUs and its own start before anyone can set a log level.
With `TF_CPP_MIN_LOG_LEVEL` set to 0, all messages are shown.
"""

import os
import re
import sys
import tempfile

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_FOR_DEVELOPERS = re.compile(
    rb"I\d{4} |WARNING: All log messages before absl|To enable the following instructions"
)


def _import_quietly() -> None:
    kept = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            told.seek(0)
            others = b"".join(line for line in told if not _FOR_DEVELOPERS.match(line))
            os.write(2, others)


def reason(error: BaseException) -> str:
    """What an error says, in one line, without the names of TensorFlow's nodes and operations."""
    line = (str(error) or repr(error)).strip().splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} |\s*\[Op:\w+\].*$", "", line)


# 3: on a machine without a GPU, that it has none is an error to CUDA.
if "tensorflow" not in sys.modules and os.environ.setdefault(_LEVEL, "3") != "0":
    _import_quietly()
