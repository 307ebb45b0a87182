"""The parts of the networks that tasks train, with an explicit particle axis."""
