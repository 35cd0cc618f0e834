"""What ranks agree on: whether a plan may run, and that their calls are the same."""
