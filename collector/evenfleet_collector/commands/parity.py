"""`evenfleet parity`: one release on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evenfleet_collector import figures
from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import check_release, json_option, url_option
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_collector.store.rows import CellRow
from evenfleet_collector.web.matrix import Drawn, Line, Matrix, arrange
from evenfleet_shared.errors import EXIT_OUTSIDE

STYLES: Final = {
    "within": "green",
    "outside": "bold red",
    "undetermined": "bright_black",
    "incomparable": "magenta",
    "silent": "bright_black",
    "refused": "yellow",
}

_UNBOUNDED: Final = 100_000

_EPILOG = """\b
Example:
  evenfleet parity
  evenfleet parity 9f2c11 --json

\b
Exit codes: 0 no cell is outside; 1 failed, or the collector does not answer; 2 bad arguments;
3 refused (no such release); 4 a cell is outside tolerance.
"""


@click.command(epilog=_EPILOG, context_settings=CONTEXT)
@click.argument("release", required=False)
@url_option
@json_option
@click.pass_context
def parity(ctx: click.Context, *, release: str | None, url: str, as_json: bool) -> None:
    """Show devices × variants of RELEASE: verdict, p95 latency, accuracy.

    RELEASE is a tag, a digest, or the start of one; the latest, if not given. On failure nothing is printed but one line.
    """
    with Collector(url) as collector:
        if release is not None:
            check_release(release)
        answer = collector.parity(release)
        order = _order(collector, answer.release) if answer.release and not as_json else ()
    if as_json:
        print_json(answer)
    elif answer.release is None:
        show("No release has been pushed yet; 'evenfleet release push DIR' brings the first.")
    else:
        show(Text(f"{answer.model} {figures.short(answer.release)}", style="bold"), render_parity(answer.items, order))
    ctx.exit(EXIT_OUTSIDE if any(cell.verdict == "outside" for cell in answer.items) else 0)


def render_parity(cells: Sequence[CellRow], order: Sequence[str] = ()) -> ParityView:
    """Return cells of one release as something that rich prints.

    Args:
        cells: In any order.
        order: Variants in the order of the manifest; others follow by name.
    """
    return ParityView(arrange(cells, order=order))


class ParityView:
    """A table of devices × variants where it fits, a list by device where it does not; then what needs a person."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for a console of this width."""
        if not self._matrix.cells:
            yield Text("No device has reported yet.")
            return
        table = _matrix_table(self._matrix)
        unbounded = options.update(max_width=_UNBOUNDED)
        fits = Measurement.get(console, unbounded, table).maximum <= options.max_width
        yield table if fits else _list(self._matrix)
        yield from _remarks(self._matrix)
        counts = [f"{n} {word}" for word, n in self._matrix.counts.items() if n]
        yield Text(", ".join(counts), style="bold")


def _matrix_table(matrix: Matrix) -> Table:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False, leading=1)
    table.add_column("device", no_wrap=True)
    for variant in matrix.variants:
        # A name breaks at its hyphens rather than widening the column.
        table.add_column(Text("\n".join(_halves(variant))), no_wrap=True, vertical="top")
    for group in matrix.groups:
        for line in group.lines:
            table.add_row(_device(line, group.device_class), *(_cell(cell) for cell in line.cells))
    return table


def _list(matrix: Matrix) -> Table:
    table = Table.grid(padding=(0, 2))
    for column in ("variant", "verdict", "p95", "accuracy"):
        table.add_column(column, no_wrap=column != "variant", overflow="fold")
    for group in matrix.groups:
        for line in group.lines:
            table.add_row(Text(line.device, style="bold"))
            for variant, cell in zip(matrix.variants, line.cells, strict=True):
                if cell is not None:
                    table.add_row(f"  {variant}", _verdict(cell), _p95(cell), _accuracy(cell))
    return table


def _remarks(matrix: Matrix) -> list[Text]:
    return [
        Text.assemble((f"{cell.mark} {line.device} {variant}", STYLES[cell.word]), f"  {cell.reason}")
        for group in matrix.groups
        for line in group.lines
        for variant, cell in zip(matrix.variants, line.cells, strict=True)
        if cell is not None and cell.word in {"outside", "incomparable", "silent", "refused"}
    ]


def _device(line: Line, device_class: str) -> Text:
    # Underneath each other, for a long runtime name would widen the table by a whole variant.
    below = [device_class, *line.run.split(" · ")]
    return Text.assemble((line.device, "bold"), *((f"\n{text}", "bright_black") for text in below if text))


def _cell(cell: Drawn | None) -> Text:
    if cell is None:
        return Text("–", style="bright_black")
    lines = [_verdict(cell), *(line for line in (_p95(cell), _accuracy(cell)) if line)]
    return Text("\n").join(lines)


def _verdict(cell: Drawn) -> Text:
    return Text(f"{cell.mark} {cell.word}", style=STYLES[cell.word])


def _p95(cell: Drawn) -> Text:
    return Text(cell.p95 or "", style=STYLES["outside"] if "latency" in cell.faults else "")


def _accuracy(cell: Drawn) -> Text:
    shown = Text(cell.accuracy or "", style=STYLES["outside"] if "accuracy" in cell.faults else "")
    return shown if cell.score is None else shown.append(f" {cell.score}", style="bright_black")


def _halves(variant: str) -> list[str]:
    if len(variant) <= 14 or "-" not in variant:
        return [variant]
    middle = min((i for i, letter in enumerate(variant) if letter == "-"), key=lambda i: abs(i - len(variant) // 2))
    return [variant[: middle + 1], variant[middle + 1 :]]


def _order(collector: Collector, release: str) -> tuple[str, ...]:
    return tuple(variant.name for variant in collector.release(release).manifest.variants)
