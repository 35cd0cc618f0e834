"""What a pipeline of patches costs, and which blocks its stages hold."""
