"""What another launcher or engine needs to run a plan."""
