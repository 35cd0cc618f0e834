"""What a rank does in a step, what that takes, and what it holds in memory."""
