"""The cluster's links, and what collectives cost on them."""
