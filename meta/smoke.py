"""The flag `--smoke` of the benchmarks: all of the program, at its smallest sizes."""

import os
from typing import Any

from absl import flags


def define(flag_values: flags.FlagValues = flags.FLAGS, /, **sizes: Any) -> None:
    """Defines the flag `--smoke`, which sets other flags to small values.

    A benchmark then runs from end to end in seconds, to see that it still works. What it finds
    means nothing; XLA compiles without optimisation. Flags that the command line gives keep their
    values.

    Args:
        flag_values: of the program.
        **sizes: from the name of a flag of the program to its small value. None of them, if the
            program takes seconds as it is.
    """
    flags.DEFINE_flag(_Smoke(sizes, flag_values), flag_values)


class _Smoke(flags.BooleanFlag):
    """Sets the defaults of other flags when it is parsed: only what was not given follows them."""

    def __init__(self, sizes: dict[str, Any], flag_values: flags.FlagValues) -> None:
        small = ", ".join(f"--{name}={_text(value)}" for name, value in sizes.items())
        super().__init__("smoke", False, f"Runs in seconds, to see that it works. {small}".strip())
        self._sizes, self._flag_values = sizes, flag_values

    def parse(self, argument: Any) -> None:
        super().parse(argument)
        if self.value:
            # XLA reads it when it first compiles. Most of a short run would be LLVM's work.
            given = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{given} --xla_backend_optimization_level=0".strip()
            for name, value in self._sizes.items():
                self._flag_values.set_default(name, value)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
