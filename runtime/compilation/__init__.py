"""Compiled blocks and CUDA graphs."""
