"""Why a plan was chosen, what it is bound by, and what would change the choice."""
