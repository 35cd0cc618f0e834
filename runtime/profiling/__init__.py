"""Measuring the cluster and the model."""
