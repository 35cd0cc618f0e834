"""What somebody runs now, in an engine's words, priced against the best."""
