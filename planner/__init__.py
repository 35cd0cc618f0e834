"""Decides: which mesh, placement and mode serve a workload on a cluster. Imports no torch."""
