"""Compiled programs that outlive the process."""

import os

from lopt_keras import programs


def keep_compiled_programs(directory: str | os.PathLike[str]) -> None:
    """Keeps what XLA compiles in a directory, for this process and those to come.

    A script that is run again takes its first step sooner: the programs of its optimizer are
    there, if the model and the versions of all packages are the same. With the TensorFlow
    backend only. It holds for all programs of the process that XLA compiles, those of a model
    with `jit_compile=True` among them.

    Call it once, before anything is compiled: TensorFlow reads this setting once. TensorFlow
    executes what it finds there. So it must be a directory that no one else can write to.

    Args:
        directory: is made if it is not there.

    Raises:
        RuntimeError: if a `LearnedOptimizer` has compiled its step already.
        OSError: if the directory cannot be made, or not be written to.
    """
    if programs.any_compiled():
        raise RuntimeError(
            "`keep_compiled_programs` must be called before a LearnedOptimizer takes its first "
            "step: TensorFlow reads this setting once."
        )
    directory = os.path.abspath(directory)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"`directory` must be writable. Received: {directory}")
    point_to(directory)


def point_to(directory: str | os.PathLike[str]) -> None:
    """Tells TensorFlow of the directory, if it has not read its settings yet."""
    given = os.environ.get("TF_XLA_FLAGS", "")
    flag = f"--tf_xla_persistent_cache_directory={os.fspath(directory)}"
    os.environ["TF_XLA_FLAGS"] = f"{given} {flag}".strip()
