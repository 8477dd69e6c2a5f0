"""`evenfleet device measure` and `restart-runner`: have a device do something now, and wait for its answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenfleet_collector import figures
from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import json_option, url_option
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_collector.resources import NewCommand
from evenfleet_collector.store.rows import CommandRow, WindowRow
from evenfleet_shared.errors import EXIT_FAILED, EXIT_REFUSED, ConfigError, EvenfleetError, RefusedError
from evenfleet_shared.topics import DEVICE_ID_RULE, is_device_id

LOOK_S: Final = 0.5
MAX_TTL_S: Final = 604_800.0
# Answers are published at once; windows go through the outbox.
WINDOWS_WITHIN_S: Final = 10.0

# What keeps a device from answering, by its last state.
_ABSENT: Final = {
    "enrolled": "; it has never connected",
    "sleeping": "; it sleeps until its day's bytes are there again",
    "gone": "; it was told to stop, and answers when it is started",
    "lost": "; its connection is lost, and it answers when it is back",
}

_CODES = """\b
Exit codes: 0 done (without --wait: sent from now on); 1 failed, not answered in time, or the collector does not answer;
2 bad arguments; 3 refused by the collector or the device.
"""

_device = click.argument("device_id", metavar="DEVICE")
_variant = click.option("--variant", metavar="NAME", help="This variant alone; all that the device runs, if not given.")
_ttl = click.option(
    "--ttl-s",
    type=float,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Given up when the device has not answered within so long.",
)
_wait = click.option("--wait", is_flag=True, help="Wait for the device's answer and show it.")


@click.command(
    epilog="\b\nExample:\n  evenfleet device measure press-07 --variant int8 --wait\n\n" + _CODES,
    context_settings=CONTEXT,
)
@_device
@_variant
@_ttl
@click.option(
    "--sustained",
    type=click.FloatRange(0, 3600),
    default=0.0,
    metavar="SECONDS",
    help="Load each variant without a pause for so long, too, and hold the last minute against the first.",
)
@click.option(
    "--offline",
    type=click.FloatRange(0, 600),
    default=0.0,
    metavar="SECONDS",
    help="Run the largest batches back to back for so long, too.",
)
@_wait
@url_option
@json_option
@click.pass_context
def measure(
    ctx: click.Context,
    *,
    device_id: str,
    variant: str | None,
    ttl_s: float,
    sustained: float,
    offline: float,
    wait: bool,
    url: str,
    as_json: bool,
) -> None:
    """Have DEVICE measure now, beside its schedule. Its windows are judged like any other.

    It is asked again and again until it answers. On failure one line says why.
    """
    with Collector(url) as collector:
        # Of one variant alone it takes so long, and it is ended when its time is over.
        if sustained + offline >= ttl_s:
            raise ConfigError(
                f"--ttl-s is {ttl_s:g}, --sustained and --offline take {sustained + offline:g} s of each variant; expected more"
            )
        wanted = NewCommand(command="measure", variant=variant, ttl_s=ttl_s, sustained_s=sustained, offline_s=offline)
        row = _ordered(collector, device_id, wanted, wait=wait)
        windows = _measured(collector, row)
    if as_json:
        print_json({"command": row, "windows": windows})
        ctx.exit(_code(row))
    _tell(row)
    if windows:
        show(_table(windows))


@click.command(
    "restart-runner",
    epilog="\b\nExample:\n  evenfleet device restart-runner press-07 --variant int8\n\n" + _CODES,
    context_settings=CONTEXT,
)
@_device
@_variant
@_ttl
@_wait
@url_option
@json_option
@click.pass_context
def restart_runner(
    ctx: click.Context, *, device_id: str, variant: str | None, ttl_s: float, wait: bool, url: str, as_json: bool
) -> None:
    """Have DEVICE end the processes that run its variants, and start them anew.

    It is asked again and again until it answers. On failure one line says why.
    """
    with Collector(url) as collector:
        wanted = NewCommand(command="restart-runner", variant=variant, ttl_s=ttl_s)
        row = _ordered(collector, device_id, wanted, wait=wait)
    if as_json:
        print_json(row)
        ctx.exit(_code(row))
    _tell(row)


def _ordered(collector: Collector, device: str, wanted: NewCommand, *, wait: bool) -> CommandRow:
    check_order(device, wanted.ttl_s, "DEVICE")
    row = collector.order(device, wanted)
    if wait:
        (row,) = await_answers(collector, [row], _ABSENT.get(collector.device(device).status, ""))
    return row


def check_order(device: str, ttl_s: float, named: str) -> None:
    """Refuse what no device is called, and a time that no command is kept for.

    Args:
        device: The device's id.
        ttl_s: How long the command is to be sent.
        named: The argument or option that names the device.

    Raises:
        ConfigError: One of them is wrong.
    """
    if not is_device_id(device):
        raise ConfigError(f"{named}: expected {DEVICE_ID_RULE}, found {device!r}")
    # Written so that what is no number fails as well.
    if not 0.0 < ttl_s <= MAX_TTL_S:
        raise ConfigError(f"--ttl-s: expected more than 0 and at most {MAX_TTL_S:.0f}, found {ttl_s:g}")


def await_answers(collector: Collector, rows: Sequence[CommandRow], how: str = "") -> list[CommandRow]:
    """Wait until each command is answered or its time is over, saying whose answer is missing.

    Args:
        collector: Is asked again and again.
        rows: The commands as they were ordered, all of one `ttl_s`.
        how: What keeps a device from answering, to be said beside it.
    """

    def waiting() -> str:
        names = " and ".join(row.device for row in rows if row.state == "waiting")
        return f"waiting for the answer of {names}, for {rows[0].ttl_s:g} s at most{how}"

    rows = list(rows)
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        click.echo(waiting(), err=True)
    with console.status(waiting()) as status:
        while any(row.state == "waiting" for row in rows):
            status.update(waiting())
            time.sleep(LOOK_S)
            rows = [
                collector.command(row.device, row.correlation_id) if row.state == "waiting" else row for row in rows
            ]
    return rows


def _measured(collector: Collector, row: CommandRow) -> list[WindowRow]:
    """Return the windows that a command made, as far as they come."""
    if row.reply is None or not row.reply.seqs:
        return []
    start = datetime.fromtimestamp(row.asked_s, timezone.utc).isoformat()
    wanted = {(row.reply.incarnation, seq) for seq in row.reply.seqs}
    until_s = time.monotonic() + WINDOWS_WITHIN_S
    while True:
        windows = [
            found
            for found in collector.windows(row.device, start=start)
            if (found.window.incarnation, found.window.seq) in wanted
        ]
        if len(windows) == len(wanted) or time.monotonic() >= until_s:
            return windows
        time.sleep(LOOK_S)


def _code(row: CommandRow) -> int:
    return {"waiting": 0, "done": 0, "refused": EXIT_REFUSED}.get(row.state, EXIT_FAILED)


def outcome(row: CommandRow) -> EvenfleetError | None:
    """Return why a command was not done, None where it was, or is still waited for."""
    why = _why(row)
    if row.state == "refused":
        return RefusedError(f"{row.device} refused {row.command}{why}")
    if row.state == "failed":
        return EvenfleetError(f"{row.device} failed at {row.command}{why}")
    if row.state == "expired":
        return EvenfleetError(
            f"{row.device} did not do {row.command} within {row.ttl_s:g} s{why}; 'evenfleet device show {row.device}' "
            "says whether it is online"
        )
    return None


def _tell(row: CommandRow) -> None:
    """Say what became of a command.

    Raises:
        RefusedError: Its device refused it.
        EvenfleetError: It failed, or was not answered in time.
    """
    error = outcome(row)
    if error is not None:
        raise error
    if row.state == "waiting":
        show(
            f"{row.command} is sent to {row.device} until it answers, for {row.ttl_s:g} s at most; its answer will be at "
            f"/api/v1/devices/{row.device}/commands/{row.correlation_id}"
        )
    else:
        show(f"{row.device} has done {row.command}{_why(row)}")


def _why(row: CommandRow) -> str:
    return f": {row.reply.detail}" if row.reply and row.reply.detail else ""


def _table(rows: Sequence[WindowRow]) -> Table:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    for column in ("variant", "window", "n", "p50", "p95", "accuracy"):
        table.add_column(column, overflow="fold")
    for row in rows:
        latency, accuracy = row.window.latency, row.window.accuracy
        table.add_row(
            row.window.variant,
            str(row.window.seq),
            str(latency.n) if latency else "",
            figures.latency(latency.p50_ms) if latency else "",
            figures.latency(latency.p95_ms) if latency else "",
            Text(figures.accuracy(1.0 - accuracy.errors / accuracy.n) if accuracy else ""),
        )
    return table
