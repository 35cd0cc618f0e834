"""Patches of the picture in a pipeline of stages."""
