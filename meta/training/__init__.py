"""Meta-training: the outer loop, and the directory of a run."""
