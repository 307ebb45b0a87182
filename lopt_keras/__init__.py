"""Learned optimizers for Keras: small neural networks, meta-trained to train yours."""

from lopt_keras import callbacks, rules
from lopt_keras.compilation_cache import keep_compiled_programs
from lopt_keras.learned_optimizer import LearnedOptimizer
from lopt_keras.pretrained import list_pretrained
from lopt_keras.version import __version__

__all__ = [
    "LearnedOptimizer",
    "__version__",
    "callbacks",
    "keep_compiled_programs",
    "list_pretrained",
    "rules",
]
