"""Optimizers against each other on many tasks: what `python -m meta.evaluate` does."""
