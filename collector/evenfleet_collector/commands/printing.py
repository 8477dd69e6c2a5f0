"""How every command prints: for a person on a terminal, for a pipe, and as JSON."""

from __future__ import annotations

import os
import sys
from typing import Final

import click
import msgspec
from rich.console import Console

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}

_PIPE_WIDTH: Final = 140


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
