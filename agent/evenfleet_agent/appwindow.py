"""Turn what an application's probes noted into the figures of one window.

Pure: durations and statistics in, the fields of `messages.AppWindow` out. The header and the clocks are the supervisor's,
the files `intake`'s.

* Every call that a probe claimed a number for is counted once: as timed, raised, dropped or refused.
* What is held does not grow with the calls: latencies and entropies are sketches, classes beyond a bound are `other`.
* Whatever other users' processes noted, what `close` returns is a message that the collector takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

from evenfleet_shared import sketch
from evenfleet_shared.messages import (
    MAX_MS,
    AppEntropy,
    AppInput,
    AppLatency,
    AppStatistics,
    AppWindow,
    Incarnation,
    Sketch,
)
from evenfleet_shared.metrics import runs_needed

MAX_CLASSES: Final = 64
# Told apart while a window is open: beyond them a new class is `other` although it may turn out frequent.
MAX_OPEN_CLASSES: Final = 1024
MAX_INPUTS: Final = 4
MAX_COUNT: Final = 2**50

# A probe looks at no more than 16,384; with this, no window's sum gets to where a message's numbers end.
_MAX_ELEMENTS: Final = 1 << 20
# Squares of larger ones are no numbers any more.
_MAX_MAGNITUDE: Final = 1e100
_MAX_ENTROPY_NATS: Final = 100.0


@dataclass(frozen=True, slots=True)
class InputSample:
    """What one call's input looked like: elements, and of those that are finite numbers mean, deviation and ends."""

    elements: int
    nan: int
    infinite: int
    mean: float
    std: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.nan + self.infinite <= self.elements <= _MAX_ELEMENTS:
            raise ValueError("more elements that are no finite numbers than there are, or more than are looked at")
        # False for NaN too.
        if not all(abs(value) <= _MAX_MAGNITUDE for value in (self.mean, self.std, self.low, self.high)):
            raise ValueError("not a finite number")
        # A mean that was rounded may lie beyond its ends; the ends themselves are elements, and cannot.
        slack = 1e-6 * max(abs(self.low), abs(self.high))
        if self.std < 0 or self.low > self.high or not self.low - slack <= self.mean <= self.high + slack:
            raise ValueError("ends the wrong way round, a mean outside them, or a negative deviation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The statistics of one call: its inputs, and (class, entropy in nats or NaN) of rows of its output."""

    one_in: int
    inputs: Sequence[InputSample]
    rows: Sequence[tuple[int, float]]

    def __post_init__(self) -> None:
        if not 1 <= self.one_in <= MAX_COUNT or len(self.inputs) > MAX_INPUTS:
            raise ValueError("not a sample")
        if not all(found >= 0 and not (entropy < 0 or entropy > _MAX_ENTROPY_NATS) for found, entropy in self.rows):
            raise ValueError("a row that decides nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppBody:
    """The measured fields of `messages.AppWindow`, by the same names."""

    app: str
    model: str | None
    length_s: float
    ended_uptime_s: float
    ended_wall_s: float
    processes: int
    calls: int
    exceptions: int
    dropped: int
    refused: int
    latency: AppLatency | None
    statistics: AppStatistics | None


def message(body: AppBody, *, device: str, incarnation: Incarnation, seq: int, floor: int) -> AppWindow:
    """Return a window as it goes up."""
    figures = {one.name: getattr(body, one.name) for one in fields(body)}
    return AppWindow(device=device, incarnation=incarnation, seq=seq, floor=floor, **figures)


@dataclass(slots=True)
class _Input:
    """One input over a window, merged as Chan, Golub and LeVeque (1983) do."""

    n: int = 0
    nan: int = 0
    infinite: int = 0
    finite: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, seen: InputSample) -> None:
        self.n += seen.elements
        self.nan += seen.nan
        self.infinite += seen.infinite
        finite = seen.elements - seen.nan - seen.infinite
        if not finite:
            return
        total = self.finite + finite
        apart = seen.mean - self.mean
        self.squares += finite * seen.std**2 + apart**2 * self.finite * finite / total
        self.mean += apart * finite / total
        self.finite = total
        self.low, self.high = min(self.low, seen.low), max(self.high, seen.high)

    def close(self, index: int) -> AppInput:
        found = AppInput(index=index, n=self.n, nan=self.nan, infinite=self.infinite)
        if not self.finite:
            return found
        return AppInput(
            index=index,
            n=self.n,
            nan=self.nan,
            infinite=self.infinite,
            mean=min(max(self.mean, self.low), self.high),
            std=math.sqrt(self.squares / self.finite),
            min=self.low,
            max=self.high,
        )


@dataclass(slots=True)
class _Values:
    """Durations or entropies over a window."""

    sketch: Sketch = field(default_factory=lambda: sketch.from_values(()))
    total: float = 0.0
    low: float = math.inf
    high: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        if values:
            self.sketch = sketch.merge([self.sketch, sketch.from_values(values)])
            self.total += math.fsum(values)
            self.low, self.high = min(self.low, *values), max(self.high, *values)

    @property
    def mean(self) -> float:
        return min(max(self.total / self.sketch.n, self.low), self.high)

    def quantile(self, q: float) -> float:
        # The sketch's answer may lie a bucket's half beyond the values that were there.
        return min(max(sketch.quantile(self.sketch, q), self.low), self.high)


class Accumulator:
    """One application's window while it is open."""

    def __init__(self) -> None:
        self._latency_ms = _Values()
        self._exceptions = 0
        self._dropped = 0
        self._refused = 0
        self._entropy_nats = _Values()
        self._inputs: list[_Input] = []
        self._classes: Counter[int] = Counter()
        self._other = 0
        self._samples = 0
        self._one_in = 0
        self._dropped_samples = 0
        self._unreadable = 0
        self._processes: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing came since the start."""
        return not self._processes

    def add_calls(self, process: str, durations_ms: Iterable[float], *, exceptions: int = 0, dropped: int = 0) -> None:
        """Count calls of a process.

        Args:
            process: Any word that tells processes apart.
            durations_ms: Of calls that returned; what no call can take is counted as refused.
            exceptions: Calls that raised.
            dropped: Calls of which only the number is known.
        """
        durations_ms = list(durations_ms)
        taken = [duration for duration in durations_ms if 0.0 <= duration <= MAX_MS]
        if not (durations_ms or exceptions or dropped):
            return
        self._processes.add(process)
        self._latency_ms.add(taken)
        self._refused += len(durations_ms) - len(taken)
        self._exceptions += exceptions
        self._dropped = min(self._dropped + dropped, MAX_COUNT)

    def add_samples(self, samples: Iterable[Sample], *, dropped: int = 0, unreadable: int = 0) -> None:
        """Count the statistics of sampled calls, in order."""
        self._dropped_samples = min(self._dropped_samples + dropped, MAX_COUNT)
        self._unreadable = min(self._unreadable + unreadable, MAX_COUNT)
        entropies = []
        for sample in samples:
            self._samples += 1
            self._one_in = sample.one_in
            while len(self._inputs) < len(sample.inputs):
                self._inputs.append(_Input())
            for held, seen in zip(self._inputs, sample.inputs, strict=False):
                held.add(seen)
            for found, entropy in sample.rows:
                if found in self._classes or len(self._classes) < MAX_OPEN_CLASSES:
                    self._classes[found] += 1
                else:
                    self._other += 1
                if not math.isnan(entropy):
                    entropies.append(entropy)
        self._entropy_nats.add(entropies)

    def close(
        self, *, app: str, model: str | None, length_s: float, ended_uptime_s: float, ended_wall_s: float
    ) -> AppBody:
        """Return the window's figures; the accumulator is done with."""
        timed = self._latency_ms.sketch.n
        return AppBody(
            app=app,
            model=model,
            length_s=length_s,
            ended_uptime_s=ended_uptime_s,
            ended_wall_s=ended_wall_s,
            processes=len(self._processes),
            calls=timed + self._exceptions + self._dropped + self._refused,
            exceptions=self._exceptions,
            dropped=self._dropped,
            refused=self._refused,
            latency=self._latency() if timed else None,
            statistics=self._statistics() if self._samples or self._dropped_samples or self._unreadable else None,
        )

    def _latency(self) -> AppLatency:
        held = self._latency_ms
        return AppLatency(
            n=held.sketch.n,
            min_ms=held.low,
            mean_ms=held.mean,
            max_ms=held.high,
            p50_ms=held.quantile(0.5),
            p90_ms=held.quantile(0.9),
            p95_ms=held.quantile(0.95),
            p99_ms=held.quantile(0.99),
            p99_qualified=held.sketch.n >= runs_needed(0.99),
            sketch=held.sketch,
        )

    def _statistics(self) -> AppStatistics:
        shown = self._classes.most_common(MAX_CLASSES)
        entropy = self._entropy_nats
        return AppStatistics(
            one_in=max(self._one_in, 1),
            samples=self._samples,
            dropped=self._dropped_samples,
            unreadable=self._unreadable,
            inputs=tuple(held.close(index) for index, held in enumerate(self._inputs)),
            classes=tuple(sorted(shown)),
            other_classes=self._other + sum(self._classes.values()) - sum(count for _, count in shown),
            entropy=AppEntropy(
                n=entropy.sketch.n,
                mean_nats=entropy.mean,
                p50_nats=entropy.quantile(0.5),
                p95_nats=entropy.quantile(0.95),
                max_nats=entropy.high,
                sketch=entropy.sketch,
            )
            if entropy.sketch.n
            else None,
        )
