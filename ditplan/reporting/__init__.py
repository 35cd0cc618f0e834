"""A report of a plan: one file of HTML with figures, for a browser without a network."""
