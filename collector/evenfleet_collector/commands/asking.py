"""What every command that asks a collector shares: where it is, and how to print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec
from rich.console import Console

from evenfleet_collector.client import DEFAULT_URL

Command = TypeVar("Command", bound=Callable[..., Any])

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}

url_option = click.option(
    "--url",
    metavar="URL",
    default=DEFAULT_URL,
    envvar="EVENFLEET_URL",
    show_default=True,
    show_envvar=True,
    help="Where the collector's API is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API gives it.")


def print_json(value: object) -> None:
    """Print a value, as JSON with line breaks."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show(*renderables: object) -> None:
    """Print for a person: in colour on a terminal, plain elsewhere."""
    console = Console(highlight=False, emoji=False, markup=False)
    for renderable in renderables:
        console.print(renderable)
