"""Writing learned optimizers as SavedModels."""

from export import backend  # First: it imports TensorFlow.
from export.checkpoint import export_checkpoint
from export.saved_model import save
from export.weights import export_weights

__all__ = ["export_checkpoint", "export_weights", "save"]
