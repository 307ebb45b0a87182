"""What makes the losses of different tasks comparable: a tuned Adam on each."""
