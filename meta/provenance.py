"""Files of results. Each is written completely or not at all, and says what made it."""

import functools
import hashlib
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from meta import files


def write_results(file: str, content: dict[Any, Any]) -> None:
    """Writes the results of the running program, with what made them as the entry `made_by`.

    Args:
        file: path; its directory is made if there is none.
        content: dict that JSON can hold.
    """
    os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
    write_json(file, {**content, "made_by": made_by()}, sort_keys=False)


def write_json(file: str | os.PathLike[str], content: Any, sort_keys: bool = True) -> None:
    """Writes JSON to a temporary name, then renames it."""
    with files.whole(file) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, sort_keys=sort_keys)
        f.write("\n")


def made_by() -> dict[str, Any]:
    """The running program: a dict of its `command`, `commit` and `versions`."""
    return {
        "command": shlex.join(["python", *_program(), *sys.argv[1:]]),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (keras, np, tf)},
        },
    }


def _program() -> list[str]:
    """The arguments that make Python run it: `-m` and a module if it runs as one, else a file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == sys.argv[0]:
        return ["-m", spec.name.removesuffix(".__main__")]
    return [os.path.relpath(sys.argv[0])]


def commit() -> str | None:
    """The revision of this source tree, marked `-dirty` if it has changes; None if unknown."""
    root = pathlib.Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def source_digest() -> str:
    """sha256 of the sources of lopt_keras, export and meta, hexadecimal."""
    root, digest = pathlib.Path(__file__).resolve().parent.parent, hashlib.sha256()
    for package in ("lopt_keras", "export", "meta"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
