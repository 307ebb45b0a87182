"""Weights that exist, exported again for one model."""

import os
from collections.abc import Sequence

from export import saved_model as writer
from lopt_keras import pretrained, saved_model
from lopt_keras.types import Shape

_OF_THE_EXPORT = ("files", "format_version", "rule", "sha256", "versions")


def export_weights(
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    shapes: Sequence[Shape],
    overwrite: bool = False,
    names: Sequence[str] | None = None,
) -> None:
    """Exports weights with signatures that step with all tensors of one model.

    The metadata is that of the weights, with their digest as `weights_sha256`.

    Args:
        weights: name of shipped weights, or path of a SavedModel.
        out, shapes, overwrite, names: as for `saved_model.save`. There have to be shapes.

    Raises:
        FileExistsError, TypeError, ValueError: see `saved_model.save`.
        ValueError: if there are no such weights, or they are damaged.
    """
    if shapes is None:
        raise TypeError("`shapes` must be a list of shapes. Received: shapes=None")
    rule, theta, metadata = saved_model.read(pretrained.find(weights))
    kept = {name: value for name, value in metadata.items() if name not in _OF_THE_EXPORT}
    kept["weights_sha256"] = metadata["sha256"]
    writer.save(out, rule, theta, kept, overwrite, shapes, names)
