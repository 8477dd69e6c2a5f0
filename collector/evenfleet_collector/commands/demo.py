"""`evenfleet demo`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from evenfleet_collector import demo as demos
from evenfleet_collector.commands.flags import render_flags
from evenfleet_collector.commands.parity import render_parity
from evenfleet_collector.commands.printing import new_console, put
from evenfleet_collector.demo import Outcome, Show
from evenfleet_shared.errors import EXIT_DONE, EXIT_OUTSIDE

_LINE_EVERY_S: Final = 20.0
_EPILOG: Final = """\
\b
Agents: xnnpack-1, xnnpack-2 (wrongly scaled inputs), xnnpack-3 (slowed),
        plain-1, tflite-1, tensorflow-1

\b
Example:
  evenfleet demo --exit
  evenfleet demo --fault plain-1=latency

\b
Exit codes, with --exit: 0 exactly the planted faults were flagged,
4 others were, or one was missed; 1 a part did not start; 2 bad arguments.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=demos.DEFAULT_SECONDS,
    show_default=True,
    help="With --exit: end after so long, whatever is decided, counted from the agents' start.",
)
@click.option("--exit", "exits", is_flag=True, help="End when every device is decided, with an exit code.")
@click.option(
    "--fault", "faults", multiple=True, metavar="AGENT=KIND", help="Plant this instead; KIND: accuracy, latency."
)
@click.option("--no-fault", is_flag=True, help="Plant nothing.")
@click.option(
    "--release", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Use this release; build none."
)
def demo(*, seconds: float, exits: bool, faults: tuple[str, ...], no_fault: bool, release: Path | None) -> None:
    """Run the whole loop on this machine, with two planted faults.

    Builds a release of a small CNN (quantized, pruned, distilled), starts a collector and six agents on different
    runtimes, takes each class's reference, plants the faults, and shows who is flagged and why. The collector is told
    nothing of the faults. Everything lies in a temporary directory and ends with the demo.
    """
    if faults and no_fault:
        raise click.UsageError("--fault and --no-fault exclude each other")
    planted = {} if no_fault else demos.parse_faults(faults) if faults else demos.DEFAULT_FAULTS
    console = new_console()
    # A polite end is an end like Ctrl-C: everything is taken down.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _shown(console) as show:
            outcome = demos.run(planted, seconds=seconds, release=release, keep_going=not exits, show=show)
    except KeyboardInterrupt:
        put(console, "ended; nothing is left behind")
        return
    _print_result(console, outcome)
    raise click.exceptions.Exit(EXIT_DONE if outcome.exactly_planted else EXIT_OUTSIDE)


class _ConsoleShow(Show):
    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console = console
        self._bar = progress
        self._task = progress.add_task("starting", total=None) if progress else None
        self._said = ""
        self._said_s = 0.0

    def say(self, line: str) -> None:
        put(self._console, line)

    def progress(self, done: int, total: int, doing: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=doing)
        elif doing != self._said and (self._phase(doing) != self._phase(self._said) or self._is_time()):
            # Where no bar can be drawn, a line for each phase, and one now and then.
            self._said, self._said_s = doing, time.monotonic()
            self.say(doing)

    def _is_time(self) -> bool:
        return time.monotonic() - self._said_s >= _LINE_EVERY_S

    @staticmethod
    def _phase(doing: str) -> str:
        return doing.partition(":")[0]

    def table(self, outcome: Outcome, url: str) -> None:
        put(self._console, f"\nDashboard: {url}   (Ctrl-C ends)")
        put(self._console, render_parity(outcome.cells))
        if outcome.flags:
            put(self._console, render_flags([flag for flag in outcome.flags if flag.cleared_s is None]))


@contextmanager
def _shown(console: Console) -> Iterator[Show]:
    if not console.is_terminal:
        yield _ConsoleShow(console, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _ConsoleShow(console, progress)


def _print_result(console: Console, outcome: Outcome) -> None:
    put(console, render_parity(outcome.cells))
    put(console, render_flags(outcome.flags))
    for device, fault in outcome.planted.items():
        at_s = outcome.flagged_s.get((device, fault))
        when = (
            "NOT flagged" if at_s is None else f"flagged {at_s - (outcome.faults_begun_s or 0.0):.0f} s after it began"
        )
        put(console, f"planted: {fault} fault in {device}: {when}")
    for flag in outcome.false_flags:
        put(console, f"flagged without a planted fault: {flag.device} {flag.variant} {flag.metric}")
    for cell in outcome.undecided:
        put(console, f"not within at the end: {cell.device} {cell.variant}: {cell.verdict}, {cell.reason}")
    times = (
        ("first parity table", outcome.first_table_s),
        ("every class judged", outcome.faults_begun_s),
        *((f"{fault} flagged", outcome.flagged_s.get((device, fault))) for device, fault in outcome.planted.items()),
        ("all decided", outcome.all_decided_s),
    )
    shown = ", ".join(f"{name} {at:.0f} s" if at is not None else f"{name}: never" for name, at in times)
    put(console, f"times since the start: {shown}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
