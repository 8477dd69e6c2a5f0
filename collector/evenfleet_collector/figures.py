"""Word numbers for people, on the dashboard, in reports and in a terminal: three significant digits, the shortest unit."""

from __future__ import annotations

from datetime import datetime, timezone

MINUS = "\N{MINUS SIGN}"


def latency(ms: float) -> str:
    """Return a latency given in ms.

    >>> [latency(ms) for ms in (0.0008, 0.0312, 1.2345, 48.61, 312.4, 2500.0)]
    ['0.80 µs', '31.2 µs', '1.23 ms', '48.6 ms', '312 ms', '2.50 s']
    """
    if ms < 0.9995:
        return f"{_three(ms * 1000)} µs"
    if ms < 999.5:
        return f"{_three(ms)} ms"
    return f"{_three(ms / 1000)} s"


def size(size_bytes: float) -> str:
    """Return a size in decimal units.

    >>> [size(b) for b in (812, 81_300, 48_612_000, 2_500_000_000)]
    ['812 B', '81.3 kB', '48.6 MB', '2.50 GB']
    """
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    for unit, factor in (("kB", 1e3), ("MB", 1e6)):
        if size_bytes < 999.5 * factor:
            return f"{_three(size_bytes / factor)} {unit}"
    return f"{_three(size_bytes / 1e9)} GB"


def accuracy(ratio: float) -> str:
    """Return an accuracy in percent.

    >>> accuracy(0.9722)
    '97.2 %'
    """
    return f"{ratio * 100:.1f} %"


def score(metric: str, value: float) -> str:
    """Return a task's own metric by its name.

    >>> score("mAP", 0.52341), score("RMSE", 1234.5678)
    ('mAP 0.5234', 'RMSE 1235')
    """
    return f"{metric} {value:.4g}"


def points(ratio: float) -> str:
    """Return a difference of accuracies in percentage points, always with its sign.

    >>> points(-0.0311), points(0.004), points(0.0), points(-0.0002)
    ('−3.1 pt', '+0.4 pt', '±0 pt', '−0.02 pt')
    """
    if ratio == 0:
        return "±0 pt"
    sign = "+" if ratio > 0 else MINUS
    size_points = abs(ratio) * 100
    return f"{sign}{size_points:.1f} pt" if size_points >= 0.05 else f"{sign}{size_points:.2g} pt"


def count(number: int) -> str:
    """Return a number with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,}"


def instant(since_1970_s: float) -> str:
    """Return an instant in UTC.

    >>> instant(0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(since_1970_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(since_1970_s: float, now_s: float) -> str:
    """Return how long ago an instant was, in its largest unit.

    >>> [ago(0, now) for now in (3, 200, 7300, 200000)]
    ['3 s', '3 min', '2 h', '2 d']
    """
    seconds = max(0, int(now_s - since_1970_s))
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def short(digest: str) -> str:
    """Return the start of a digest.

    >>> short("9f2c" + "0" * 60)
    '9f2c00000000'
    """
    return digest[:12]


def _three(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
