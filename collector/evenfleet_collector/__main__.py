"""`python -m evenfleet_collector` is the command `evenfleet`."""

from evenfleet_collector.cli import main

main()
