"""Make the report one HTML file that can be put anywhere: nothing is fetched, nothing is run, light and dark.

Decides the words and their order; leaves what is said to `worth.ReportDocument`, the look to `templates/report.css`, and
the drawings to `charts`.

* Everything in a report is text of somebody else's: names of classes and files, reasons, lineage. All of it is escaped,
  and the page allows no script to itself.
* The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evenfleet_collector import figures
from evenfleet_collector.optimize import charts, remarks
from evenfleet_collector.optimize.worth import ForecastErrors, ReportDocument, VariantReport
from evenfleet_shared import __version__

_TEMPLATES: Final = Path(__file__).parent / "templates"
_NONE: Final = "–"


def render(report: ReportDocument) -> str:
    """Return the page.

    Raises:
        ValueError: The report has no rows, or not that of its reference variant.
    """
    if report.reference_variant not in {row.name for row in report.rows}:
        raise ValueError(f"the report has no row of its reference variant {report.reference_variant}")
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(figures=figures, share=_share, app_version=__version__)
    templates.filters.update(
        share=_share, orelse=_orelse, between=_between, gain=remarks.worded, times=_times, off=_off
    )
    return templates.get_template("report.html").render(
        report=report,
        headline=headline(report),
        charts=charts.charts(report.rows, report.reference_variant),
        timed=any(row.timing is not None for row in report.rows),
        timing_words=_timing_words(report.rows),
        forecast_words=_forecast_words(report.forecast_errors),
        remarked=[row for row in report.rows if row.remarks],
        class_names=_class_names(report),
    )


def headline(report: ReportDocument) -> str:
    """Return what the report comes to, in a sentence: about the variant that the target chose, else the smallest good one.

    Good is a variant of the reference's format that is not less accurate than the reference by more than chance explains.
    """
    (reference,) = (row for row in report.rows if row.name == report.reference_variant)
    chosen = next((row for row in report.rows if row.name == report.chosen), None)
    if chosen is not None:
        return f"{chosen.name}{_beside(chosen, reference, report.test_n)}."
    good = [row for row in report.rows if row.format == reference.format and row.delta_interval[1] >= 0.0]
    best = min([*good, reference], key=lambda row: row.size_bytes)
    if best.name == reference.name:
        return f"No variant is smaller than {reference.name} without being less accurate by more than chance explains."
    return (
        f"{best.name} is the smallest that is not less accurate than {reference.name} by more than chance explains: it"
        f"{_beside(best, reference, report.test_n)}."
    )


def _beside(row: VariantReport, reference: VariantReport, test_n: int) -> str:
    if row.name == reference.name:
        right = f"{_share(row.accuracy_ratio)} accurate on {figures.count(test_n)} test samples"
        return f" is the reference: {figures.size(row.size_bytes)}, {right}"
    parts = [f"has {row.size_ratio * 100:.0f} % of {reference.name}'s size"]
    if row.timing is not None and reference.timing is not None and row.format == reference.format:
        parts.append(
            f"takes {figures.latency(row.timing.p50_ms)} instead of {figures.latency(reference.timing.p50_ms)} (p50)"
        )
    parts.append(
        f"is {_share(row.accuracy_ratio)} accurate on {figures.count(test_n)} test samples, "
        f"{figures.points(row.delta_ratio)} beside {reference.name}"
    )
    return f" {', '.join(parts[:-1])} and {parts[-1]}"


def _timing_words(rows: Sequence[VariantReport]) -> str:
    """Say how the variants were timed; those that were timed alike together."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        if (timing := row.timing) is not None:
            threads = f"{timing.threads} thread{'s' if timing.threads != 1 else ''}"
            how = (
                f"{timing.runtime} {timing.runtime_version} with {threads}, {figures.count(timing.n)} inferences in "
                f"{timing.rounds} rounds"
            )
            alike.setdefault(how, []).append(row.name)
    if len(alike) == 1:
        return f"Timed by {next(iter(alike))}, each in a process of its own."
    return f"Timed by {'; by '.join(how + ' (' + ', '.join(names) + ')' for how, names in alike.items())}."


def _forecast_words(errors: ForecastErrors | None) -> str:
    if errors is None:
        return ""
    parts = [
        f"by {what} it is off by a factor of {factor:.2f} in the median (of {n})"
        for what, factor, n in (
            ("size", errors.by_size_factor, errors.by_size_n),
            ("operations", errors.by_macs_factor, errors.by_macs_n),
        )
        if factor is not None
    ]
    if not parts:
        return ""
    return (
        "Foretold is a variant's size, or its operations, over the median throughput of the others alone: "
        f"{'; '.join(parts)}. That is how far size and operations tell the time on this machine."
    )


def _class_names(report: ReportDocument) -> list[str]:
    """Return a name for each class: its number where the data has no names, or too few."""
    classes = max(len(row.class_accuracy_ratios) for row in report.rows)
    named = dict(enumerate(report.class_names))
    return [named.get(label, str(label)) for label in range(classes)]


def _share(ratio: float) -> str:
    """Return a ratio in percent with two decimals: of some thousand samples one more is seen."""
    return f"{ratio * 100:.2f} %"


def _orelse(value: Any, word: Callable[[Any], str] = str) -> str:
    return _NONE if value is None else word(value)


def _between(interval: tuple[float, float], word: Callable[[float], str]) -> str:
    return f"{word(interval[0])} to {word(interval[1])}"


def _times(ratio: float) -> str:
    return f"{ratio * 100:.0f} %" if ratio < 10.0 else f"{ratio:.0f} ×"


def _off(foretold_ms: float, measured_ms: float) -> str:
    return f"{foretold_ms / measured_ms:.2f} × the measured" if measured_ms > 0.0 else _NONE
