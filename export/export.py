"""Exports a meta-training run's latest checkpoint as a SavedModel.

python -m export.export --checkpoint_dir=out/run --out=out/learned_optimizer
"""

from absl import app, flags

from export import command
from export.checkpoint import export_checkpoint

_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir", None, "The --out_dir of meta.train, or its checkpoints.", required=True
)
_OUT = flags.DEFINE_string("out", None, "SavedModel directory to write.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether to replace an existing export.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        export_checkpoint(_CHECKPOINT_DIR.value, _OUT.value, _OVERWRITE.value)
    except (FileExistsError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    print(f"Exported to {_OUT.value}")


if __name__ == "__main__":
    command.run(main)
