"""Blocks whose weights ranks share out, as far as planner and runtime have to agree on them."""

BLOCKS_WHOLE_AT_ONCE = 2
"""The one that runs and the one that is being put together."""
