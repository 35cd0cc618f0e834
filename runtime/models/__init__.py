"""Diffusers' models: what they are, their inputs, how they load."""
