"""The processes that a plan runs on."""
