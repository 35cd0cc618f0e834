"""`python -m ditplan` is the command line."""

from ditplan.cli import main

main()
