"""The directory of a meta-training run: which run it belongs to."""

import json
import os
import pathlib
import subprocess

RUN_FILE = "run.json"


def claim(out_dir, run):
    """Makes the directory this run's, or checks that it already is.

    Writes `run.json`: the content of `run`, and `commits`, the revisions of this
    source tree that worked on the run (none outside of a git checkout).

    Args:
        out_dir: the directory, made if there is none.
        run: dict that JSON can hold; `run["flags"]` is a flat dict that must be
            the same whenever the run is resumed.

    Raises:
        ValueError: if the directory belongs to a run with other flags; the
            message names the first that differs.
    """
    os.makedirs(out_dir, exist_ok=True)
    file = os.path.join(out_dir, RUN_FILE)
    commits = []
    if os.path.exists(file):
        with open(file, encoding="utf-8") as f:
            earlier = json.load(f)
        _check_flags(out_dir, earlier["flags"], run["flags"])
        commits = earlier["commits"]
    current = commit()
    if current and current not in commits:
        commits = [*commits, current]
    write_json(file, {**run, "commits": commits})


def write_json(file, content):
    """Writes JSON to a temporary name, then renames it."""
    temporary = f"{file}.tmp"
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, sort_keys=True)
        f.write("\n")
    os.replace(temporary, file)


def _check_flags(out_dir, earlier, flags):
    for name in sorted(set(earlier) | set(flags)):
        if earlier.get(name) != flags.get(name):
            raise ValueError(
                f"`--out_dir={out_dir}` holds a run with --{name}={earlier.get(name)!r}. "
                f"Received: --{name}={flags.get(name)!r}. "
                "Give the same flags to resume it, or another --out_dir."
            )


def commit():
    """The revision of this source tree, marked `-dirty` if it has changes; None if unknown."""
    root = pathlib.Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
