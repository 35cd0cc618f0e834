"""Executes plans and measures: everything that needs torch."""
