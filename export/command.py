"""How the commands run: what is for their user on the terminal, and nothing else."""

import functools
import importlib
import runpy
import sys
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import app, logging


def run(main: Callable[[list[str]], Any], **kwargs: Any) -> None:
    """Runs a command and exits.

    What a user can mend ends with one line: wrong flags (`app.UsageError`), files that cannot
    be written or read (`OSError`), an interruption.

    Args:
        main: function of `sys.argv`, called when absl has parsed the flags.
        **kwargs: of `absl.app.run`.
    """
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")  # It warns of programs that are traced again.
    warnings.formatwarning = lambda message, *args, **kwargs: f"Warning: {message}\n"
    app.run(functools.partial(_main, main), **kwargs)


def _main(main: Callable[[list[str]], Any], argv: list[str]) -> Any:
    try:
        return main(argv)
    except app.UsageError as error:
        sys.exit(f"Error: {error}\n--help shows the flags.")
    except OSError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def meta_train() -> None:
    """The console command `lopt-meta-train`."""
    _run_module("meta.train")


def evaluate() -> None:
    """The console command `lopt-evaluate`."""
    _run_module("meta.evaluate")


def analyze() -> None:
    """The console command `lopt-analyze`."""
    _run_module("meta.analyze")


def continuation() -> None:
    """The console command `lopt-continuation`."""
    _run_module("meta.continuation")


def export() -> None:
    """The console command `lopt-export`."""
    _run_module("export.export")


def _run_module(name: str) -> None:
    """Runs a module as `python -m` does, so that --help shows its flags."""
    try:
        importlib.import_module(name.partition(".")[0])  # Says what is missing.
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except ImportError as error:
        sys.exit(f"Error: {error}")
