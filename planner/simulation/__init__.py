"""A plan as tasks on ranks and links, and as a trace."""
