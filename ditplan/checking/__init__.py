"""Holds the planner's answers against recorded ones: what was lost, what got worse, what moved."""
