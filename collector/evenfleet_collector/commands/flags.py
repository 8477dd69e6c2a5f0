"""`evenfleet flags`: what is outside tolerance, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evenfleet_collector import figures
from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import json_option, url_option
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_collector.resources import Flag
from evenfleet_collector.store.rows import FlagRow
from evenfleet_shared.errors import EXIT_OUTSIDE

_EPILOG = """\b
Example:
  evenfleet flags
  evenfleet flags --why 3

\b
Exit codes: 0 no flag is open; 1 failed, or the collector does not answer; 2 bad arguments;
3 refused (no such flag); 4 a flag is open (with --why: this one).
"""


@click.command(epilog=_EPILOG, context_settings=CONTEXT)
@click.option("--why", type=click.IntRange(min=1), metavar="ID", help="Show the windows and sums that made a flag.")
@click.option("--all", "cleared", is_flag=True, help="Show those that have been cleared, too.")
@url_option
@json_option
@click.pass_context
def flags(ctx: click.Context, *, why: int | None, cleared: bool, url: str, as_json: bool) -> None:
    """Show which device × variant is outside tolerance in which metric, since when, and why.

    On failure nothing is printed but one line.
    """
    with Collector(url) as collector:
        found = [collector.flag(why)] if why is not None else collector.flags(cleared=cleared)
    if as_json:
        print_json(found[0] if why is not None else found)
    elif why is not None:
        show(render_flags(found), render_evidence(found[0]))
    else:
        show(render_flags(found))
    ctx.exit(EXIT_OUTSIDE if any(flag.cleared_s is None for flag in found) else 0)


def render_flags(flags: Sequence[Flag | FlagRow]) -> RenderableType:
    """Return flags as something that rich prints: who, which metric, since when, why."""
    if not flags:
        return Text("Nothing is outside tolerance.", style="green")
    lines: list[RenderableType] = []
    for flag in flags:
        state = ("▲ outside", "bold red") if flag.cleared_s is None else ("● cleared", "green")
        since = f"since {figures.instant(flag.opened_s)}"
        if flag.cleared_s is not None:
            since += f" until {figures.instant(flag.cleared_s)}"
        lines += [
            Text.assemble(
                state, f"  #{flag.id}  ", (f"{flag.device} {flag.variant} {flag.metric}", "bold"), f"  {since}"
            ),
            _Indented(flag.reason),
        ]
    return Group(*lines)


class _Indented:
    """A text with room before it: before each line of it, where it is wrapped."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for a console that wraps, or does not."""
        yield Text(f"    {self._text}") if options.no_wrap else Padding(Text(self._text), (0, 0, 0, 4))


def render_evidence(flag: Flag) -> RenderableType:
    """Return the evidence of a flag: its figures, and its steps as a table."""
    if not isinstance(flag.evidence, dict):
        return Text("No evidence was kept.")
    figures_table = Table.grid(padding=(0, 2))
    tables: list[RenderableType] = []
    for name, value in flag.evidence.items():
        if isinstance(value, list) and value and all(isinstance(step, dict) for step in value):
            tables += [Text(f"\n{name}", style="bold"), _steps(value)]
        else:
            figures_table.add_row(f"    {name}", _worded(value))
    return Group(figures_table, *tables)


def _steps(steps: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    columns = list(dict.fromkeys(name for step in steps for name in step))
    for column in columns:
        table.add_column(column, justify="right")
    for step in steps:
        table.add_row(*(_worded(step.get(column, "")) for column in columns))
    return table


def _worded(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
