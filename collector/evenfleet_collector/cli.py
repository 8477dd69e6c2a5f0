"""The command `evenfleet`: finds the command that is meant, and turns errors into one line and an exit code.

Each command is a file in `commands/`; it is imported when it is called, so that asking for help or for a flag does not
wait for TensorFlow or the web stack.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from evenfleet_shared import __version__
from evenfleet_shared.errors import EXIT_FAILED, EXIT_USAGE, EvenfleetError

# Name, and what it is for; the order is that of the help page.
COMMANDS: Final = {
    "demo": "Run the whole loop on this machine: real models, agents, collector, two planted faults.",
    "serve": "Run the collector: broker, ingest, judge, API and dashboard.",
    "optimize": "Make a release of a model: every variant, measured against the reference.",
    "diff": "Name the first operator at which two files of one model part.",
    "release": "Sign, verify, push, list, show, tag and assign releases.",
    "device": "List, show and enrol devices, and have them do something now.",
    "policy": "Show and set what is tolerated.",
    "parity": "Show devices × variants of a release.",
    "flags": "Show the devices outside tolerance, and why.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"evenfleet_collector.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table above: the modules stay unimported.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


_EPILOG: Final = """\
\b
Example:
  evenfleet serve --data ./fleet &
  evenfleet optimize model.keras --data data.npz --out release/
  evenfleet release push release/ && evenfleet parity

\b
Exit codes: 0 done, 1 failed, 2 bad arguments or configuration,
3 refused by the other side, 4 outside tolerance.

Completion: eval "$(_EVENFLEET_COMPLETE=bash_source evenfleet)"
"""


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evenfleet")
def evenfleet() -> None:
    """Keep a model's accuracy, latency and memory even across a fleet of devices."""


def main() -> None:
    """Run the command line of this process."""
    try:
        code = evenfleet.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(130)
    except EvenfleetError as error:
        click.echo(f"evenfleet: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0].startswith("evenfleet"):
            raise
        click.echo(f"evenfleet: {error.name} is not installed; pip install 'evenfleet[all]'", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
