"""Meta-training: tasks, estimators of the meta-gradient, and the outer loop."""
