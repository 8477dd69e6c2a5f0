"""What every command that asks a collector shares: where it is, and how to print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec
from rich.console import Console

from evenfleet_collector.client import DEFAULT_URL
from evenfleet_collector.resources import RELEASE_RULE, is_release_name
from evenfleet_shared.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

_PIPE_WIDTH: Final = 140

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


def check_release(text: str) -> None:
    """Refuse what cannot stand for a release before anybody is asked.

    Raises:
        ConfigError: It is no tag, no digest, nor enough of its start.
    """
    if not is_release_name(text):
        raise ConfigError(f"RELEASE: expected {RELEASE_RULE}, found {text!r}")


def print_json(value: object) -> None:
    """Print a value, as JSON with line breaks."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show(*renderables: object) -> None:
    """Print for a person: in colour on a terminal, plain elsewhere."""
    console = new_console()
    for renderable in renderables:
        put(console, renderable)


def new_console() -> Console:
    """Return a console on standard output that is as wide as the terminal, or as wide as tables need."""
    return Console(width=None if _has_width() else _PIPE_WIDTH, highlight=False, emoji=False, markup=False)


def put(console: Console, renderable: object) -> None:
    """Print on a console of `new_console`; where there is no terminal, a line of text is one, however long."""
    if _has_width():
        console.print(renderable)
    else:
        console.print(renderable, no_wrap=True, overflow="ignore", crop=False)


def _has_width() -> bool:
    # A pipe has no width of its own, and nothing is to be cut to 80 columns there; who sets COLUMNS wants it.
    return sys.stdout.isatty() or "COLUMNS" in os.environ
