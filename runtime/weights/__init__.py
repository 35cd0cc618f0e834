"""Loading weights, whole or in shards."""
