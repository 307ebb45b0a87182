"""Exports a meta-training run's latest checkpoint, or weights for one model, as a SavedModel.

python -m export.export --checkpoint_dir=out/run --out=out/learned_optimizer
python -m export.export --weights=default --shapes='[[784, 10], [10]]' --out=out/for_my_model
"""

import json
from typing import Any

from absl import app, flags

from export import command
from export.checkpoint import export_checkpoint
from export.weights import export_weights

_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir", None, "The --out_dir of meta.train, or its checkpoints."
)
_WEIGHTS = flags.DEFINE_string("weights", None, "Shipped weights, or a SavedModel.")
_SHAPES = flags.DEFINE_string(
    "shapes", None, "Of the variables of the model that the weights are for: JSON, a list of lists."
)
_NAMES = flags.DEFINE_string(
    "names", None, "Of these variables: JSON, a list of strings. Default: they have none."
)
_OUT = flags.DEFINE_string("out", None, "SavedModel directory to write.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether to replace an existing export.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    checkpoint_dir, weights, shapes = _CHECKPOINT_DIR.value, _WEIGHTS.value, _SHAPES.value
    names = None if _NAMES.value is None else _parsed("names", _NAMES.value)
    try:
        if checkpoint_dir is not None and weights is None and shapes is None and names is None:
            export_checkpoint(checkpoint_dir, _OUT.value, _OVERWRITE.value)
        elif checkpoint_dir is None and weights is not None and shapes is not None:
            shapes = _parsed("shapes", shapes)
            export_weights(weights, _OUT.value, shapes, _OVERWRITE.value, names)
        else:
            raise app.UsageError(
                "Give --checkpoint_dir, or both --weights and --shapes, and with these --names too."
            )
    except (FileExistsError, TypeError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    print(f"Exported to {_OUT.value}")


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise app.UsageError(f"--{name} must be JSON. Received: {text!r:.200}") from error


if __name__ == "__main__":
    command.run(main)
