"""`python -m evenfleet_agent` is `evenfleet-agent`."""

from __future__ import annotations

from evenfleet_agent.cli import main

if __name__ == "__main__":
    main(prog_name="evenfleet-agent")
