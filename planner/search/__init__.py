"""From a task to the best plan: pricing, pruning, measuring, correcting, ranking."""
