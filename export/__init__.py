"""Writing learned optimizers as SavedModels."""

from export import backend  # First: it imports TensorFlow.
from export.checkpoint import export_checkpoint
from export.saved_model import save

__all__ = ["export_checkpoint", "save"]
