"""The parts of the command line that are no command."""
