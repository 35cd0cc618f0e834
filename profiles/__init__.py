"""The nouns of ditplan: plans, workloads, clusters, models, families, and the shipped data."""
