"""The inner loop: an update rule trains on a task."""
