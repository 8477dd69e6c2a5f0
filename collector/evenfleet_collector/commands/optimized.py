"""Tell what `evenfleet optimize` built: as a table with sentences below it, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from evenfleet_collector import figures
from evenfleet_collector.commands.printing import print_json, show
from evenfleet_collector.optimize import BuildReport, VariantReport
from evenfleet_collector.optimize.remarks import worded


def show_json(built: BuildReport, said: Sequence[str]) -> None:
    """Print everything as JSON; `said` is what becomes of the target, in words."""
    choice = built.choice
    document = {
        "release": built.digest,
        "directory": str(built.directory),
        "model": built.manifest.model,
        "reference_variant": built.manifest.reference_variant,
        "test_n": built.test_n,
        "golden_n": built.manifest.golden.n,
        "preprocessing": built.manifest.preprocessing["fingerprint"],
        "elapsed_s": round(built.elapsed_s, 1),
        "variants": built.variants,
        "missing": built.missing,
        "forecast_errors": built.forecast_errors,
        "target": None
        if choice is None
        else {
            "variant": choice.row.name,
            "holds": choice.holds,
            "shortfalls": choice.shortfalls,
            "unmet": choice.unmet,
            "words": said,
        },
    }
    print_json(document)


def show_table(built: BuildReport, said: Sequence[str]) -> None:
    """Print the table, and below it what figures alone do not say; `said` is what becomes of the target."""
    show(_table(built), *_sentences(built), *said, *_footer(built))


def _table(built: BuildReport) -> Table:
    reference = built.manifest.reference_variant
    table = Table(
        title=f"{built.manifest.model}: accuracy on {built.test_n} test samples, change against {reference}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("variant", no_wrap=True)
    for heading in ("accuracy", "change", "worst class", "bytes", "ratio", "gzip", "p50", "peak memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("agreement", overflow="fold", min_width=10)
    for row in built.variants:
        table.add_row(*_cells(row, is_reference=row.name == reference))
    return table


def _cells(row: VariantReport, *, is_reference: bool) -> Iterator[str]:
    worst, timing = row.worst_class, row.timing
    yield row.name
    yield f"{row.accuracy_ratio:.4f}"
    yield "–" if is_reference else figures.points(row.delta_ratio)
    yield f"{worst.name or worst.label} {figures.accuracy(worst.recall_ratio)}"
    yield f"{row.size_bytes:,}"
    yield f"{row.size_ratio:.2f}"
    yield f"{row.compressed_ratio:.2f}"
    yield "–" if timing is None else figures.latency(timing.p50_ms)
    yield "–" if timing is None else figures.size(timing.peak_rss_bytes)
    yield f"{row.agreement.noise_class}, {row.agreement.top1_ratio:.1%} same"


def _sentences(built: BuildReport) -> Iterator[str]:
    for row in built.variants:
        # What a technique did not bring is among the remarks.
        if row.gain is not None and row.gain.brought == "more":
            yield f"{row.name}: {row.gain.technique} itself brings accuracy: {worded(row.gain)}"
        for remark in row.remarks:
            yield f"{row.name}: {remark}"
        if row.dominated_by:
            yield f"{row.name}: dominated by {', '.join(row.dominated_by)}"
        for reason in (row.no_gain, row.no_timing):
            if reason is not None:
                yield f"{row.name}: {reason}"
    for missing in built.missing:
        yield f"not built: {missing.name}: {missing.reason}"
    errors = built.forecast_errors
    factors = {"size": errors.by_size_factor, "operations": errors.by_macs_factor} if errors is not None else {}
    known = [f"{factor:.1f} by {what}" for what, factor in factors.items() if factor is not None]
    if known:
        yield f"p50 foretold from the other variants' throughputs is off by a factor of {', '.join(known)} in the median"


def _footer(built: BuildReport) -> Iterator[str]:
    yield f"preprocessing {_preprocessing_words(built.manifest.preprocessing)}"
    yield (
        f"release {built.digest[:12]}… with {built.manifest.golden.n} golden samples in {built.directory} "
        f"({built.elapsed_s:.0f} s)"
    )


def _preprocessing_words(declared: Mapping[str, str]) -> str:
    """Say it in a line; the fingerprint's start is what a person compares."""
    words = [declared[name] for name in ("shape", "channels", "layout", "resize", "fit") if name in declared]
    if "scale" in declared:
        words.append(f"pixel × {declared['scale']} + {declared['offset']}")
    kind = "as given" if declared["input"] == "as-given" else "of images"
    return f"{declared['fingerprint'][:12]}… ({kind}: {', '.join(words)})"
