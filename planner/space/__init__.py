"""All legal configurations, and why the others are not legal."""
