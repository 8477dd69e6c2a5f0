"""`evenfleet device`: list, show and enrol devices, and have them do something now."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import click
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from evenfleet_collector import circumstances, figures
from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import json_option, url_option
from evenfleet_collector.commands.device_orders import measure, restart_runner
from evenfleet_collector.commands.flags import render_flags
from evenfleet_collector.commands.parity import STYLES, render_parity
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_collector.store.rows import AppWindowRow, CellRow, DeviceRow, EventRow
from evenfleet_collector.tolerance import SLEEP_S
from evenfleet_shared.errors import ConfigError
from evenfleet_shared.topics import DEVICE_ID_RULE, is_device_id

EVENTS_SHOWN: Final = 5

_EXAMPLE = "\b\nExample:\n  evenfleet device enrol press-07 --token-file press-07.token\n\n"

# What a device says of itself, in words.
_STATES: Final = {
    "enrolled": "enrolled",
    "birth": "online",
    "sleeping": "sleeping",
    "gone": "stopped",
    "lost": "lost",
}

_CODES = """\b
Exit codes: 0 done; 1 failed, or the collector does not answer; 2 bad arguments; 3 refused by the collector.
"""


@click.group(epilog=_EXAMPLE + _CODES, context_settings=CONTEXT)
def device() -> None:
    """List, show and enrol devices, and have them do something now."""


@device.command("list", epilog="\b\nExample:\n  evenfleet device list --verdict outside\n\n" + _CODES)
@click.option(
    "--verdict",
    type=click.Choice(["within", "outside", "undetermined", "incomparable", "silent"]),
    help="Only those of this verdict.",
)
@url_option
@json_option
def list_devices(*, verdict: str | None, url: str, as_json: bool) -> None:
    """List devices, their class and the verdict on each."""
    with Collector(url) as collector:
        rows = collector.devices(**({"verdict": verdict} if verdict else {}))
    if as_json:
        print_json(rows)
    elif not rows:
        show("No device fits." if verdict else "No device is enrolled or has been heard of yet.")
    else:
        show(_table(rows, time.time()))


@device.command("show", epilog="\b\nExample:\n  evenfleet device show press-07\n\n" + _CODES)
@click.argument("device_id", metavar="DEVICE")
@url_option
@json_option
def show_device(*, device_id: str, url: str, as_json: bool) -> None:
    """Show one device: its state, its cells and what they were measured under, its open flags, its applications and what it reported last."""
    _check(device_id)
    with Collector(url) as collector:
        row = collector.device(device_id)
        cells = collector.parity(row.release, device=device_id).items
        flags = collector.flags(device=device_id)
        apps = collector.apps(device_id, newest="true")
        events = collector.newest_events(device_id, EVENTS_SHOWN)
    if as_json:
        print_json({"device": row, "cells": cells, "flags": flags, "apps": apps, "events": events})
        return
    show(_table([row], time.time()), *_sleep(row, time.time()), "", render_parity(cells), "", render_flags(flags))
    for lines in (
        [Text(line) for cell in cells for line in _circumstances(cell)],
        [Text(_line_of(app, time.time())) for app in apps],
        [_event(event, time.time()) for event in events],
    ):
        if lines:
            show("", *lines)


@device.command(
    "enrol", epilog="\b\nExample:\n  evenfleet device enrol press-07 --token-file press-07.token\n\n" + _CODES
)
@click.argument("device_id", metavar="DEVICE")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Write the token there, readable by you alone, instead of printing it. An existing file is refused.",
)
@url_option
@json_option
def enrol(*, device_id: str, token_file: Path | None, url: str, as_json: bool) -> None:
    """Let DEVICE report: give it a token, which is shown this once and kept nowhere.

    On failure nothing is enrolled and no file is left.
    """
    _check(device_id)
    # Before the device is enrolled, for a token that cannot be written down would be lost.
    handle = _open(token_file) if token_file else None
    try:
        with Collector(url) as collector:
            enrolment = collector.enrol(device_id)
    except BaseException:
        if handle is not None and token_file is not None:
            os.close(handle)
            token_file.unlink()
        raise
    if handle is not None:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(enrolment.token + "\n")
    if as_json:
        print_json({"device": device_id, "token_file": str(token_file)} if token_file else enrolment)
    elif token_file:
        click.echo(f"{device_id} is enrolled; its token is in {token_file}")
    else:
        click.echo(f"{device_id} is enrolled; its token, shown only this once:\n{enrolment.token}")


device.add_command(measure)
device.add_command(restart_runner)


def _table(rows: list[DeviceRow], now_s: float) -> Table:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    for column in ("device", "class"):
        table.add_column(column, overflow="fold")
    for column in ("state", "verdict", "release", "last seen"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            row.device,
            row.device_class or "",
            _STATES[row.status],
            Text(row.verdict or "", style=STYLES[row.verdict] if row.verdict else ""),
            figures.short(row.release) if row.release else "",
            f"{figures.ago(row.last_seen_s, now_s)} ago" if row.last_seen_s is not None else "never",
        )
    return table


def _sleep(row: DeviceRow, now_s: float) -> list[Text]:
    if row.status != "sleeping" or row.last_seen_s is None:
        return []
    fell = f"sleeping: its bytes of the day were used up {figures.ago(row.last_seen_s, now_s)} ago"
    if now_s - row.last_seen_s > SLEEP_S:
        return [Text(f"{fell}; that day is over, and it should have been heard of again")]
    return [Text(f"{fell}; what it measures comes when the next day begins, within a day of that")]


def _circumstances(cell: CellRow) -> list[str]:
    return [f"{cell.variant}  {line}" for line in circumstances.lines(cell.circumstances)]


def _event(event: EventRow, now_s: float) -> Text:
    about = [event.variant or "", event.detail]
    return Text.assemble(
        (event.event, "bold"),
        f"  {figures.ago(event.received_s, now_s)} ago  ",
        "  ".join(part for part in about if part),
    )


def _line_of(row: AppWindowRow, now_s: float) -> str:
    window = row.window
    model = window.model or ""
    named = f", model {figures.short(model) if len(model) == 64 else model}" if model else ""
    took = f"p50 {window.latency.p50_ms:.3g} ms, p95 {window.latency.p95_ms:.3g} ms" if window.latency else "none timed"
    parts = [f"{window.calls:,} calls in {window.length_s:.0f} s", took]
    parts += [
        f"{count:,} {word}" for word, count in (("raised", window.exceptions), ("dropped", window.dropped)) if count
    ]
    return f"application {window.app}{named}: {', '.join(parts)}; {figures.ago(row.received_s, now_s)} ago"


def _check(device_id: str) -> None:
    if not is_device_id(device_id):
        raise ConfigError(f"DEVICE: expected {DEVICE_ID_RULE}, found {device_id!r}")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"--token-file: cannot make {path}: {error.strerror}; nothing was enrolled") from None
