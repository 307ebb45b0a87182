"""Meta-training: the inner loop, the outer loop around it, and the directory of a run."""
