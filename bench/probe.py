"""Print what `evenfleet_agent.probe` takes of an application, and what reading it takes of the agent.

Every way of calling is timed in turn, in many short rounds, so that a change of the machine's pace meets all of them; a
cost is the median over the rounds of the difference within a round, with the middle half of them beside it.

* Timing alone, against the same loop with an empty body, with an empty `with`, and with a plain call.
* Statistics, against timing alone, of a body that takes some hundred microseconds: N follows the budget.
* Reading a ring that is full.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from evenfleet_agent import probe
from evenfleet_agent.intake import Intake
from evenfleet_agent.probe import Probe

ROUNDS = 2_000
CALLS = 100  # so few that most rounds are over before the scheduler takes the processor away
TARGET_US = 1.0
BUDGET_RATIO = 0.01
BODY_US = 300.0
PART_S = 6.0


class Empty:
    """A context manager that does nothing."""

    __slots__ = ()

    def __enter__(self) -> Empty:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def main() -> int:
    """Measure, print, and return 4 if a target is missed."""
    memory = Path("/dev/shm")  # noqa: S108 - as /run is, which the agent's own directory lies in
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)
        missed = timing_alone(Probe("bench", directory=directory))
        missed += with_statistics(Probe("bench", directory=directory, budget_ratio=BUDGET_RATIO))
        reading(directory)
    return 4 if missed else 0


def timing_alone(app: Probe) -> int:
    """Print what timing costs a call; return how many targets are missed."""

    def nothing() -> None:
        pass

    timing, timed = app.timing, app.timed(nothing)

    def bare() -> None:
        for _ in range(CALLS):
            pass

    def empty_with() -> None:
        for _ in range(CALLS):
            with Empty():
                pass

    def probe_with() -> None:
        for _ in range(CALLS):
            with timing():
                pass

    def plain_call() -> None:
        for _ in range(CALLS):
            nothing()

    def probe_call() -> None:
        for _ in range(CALLS):
            timed()

    ways = (bare, empty_with, probe_with, plain_call, probe_call)
    rounds: dict[Callable[[], None], list[float]] = {way: [] for way in ways}
    for way in ways:
        way()
    for _ in range(ROUNDS):
        for way in ways:
            start_ns = perf_counter_ns()
            way()
            rounds[way].append((perf_counter_ns() - start_ns) / CALLS / 1000)
    assert app.recording
    print(f"timing alone, {ROUNDS:,} rounds of {CALLS} calls each, µs per call (middle half):")
    pace = {name: statistics.median(rounds[way]) for name, way in (("with", empty_with), ("call", plain_call))}
    print(
        f"  (an empty with takes {pace['with']:.2f}, an empty call {pace['call']:.2f}; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors)"
    )
    missed = 0
    for label, way, against in (
        ("context manager over an empty body", probe_with, bare),
        ("context manager over an empty one", probe_with, empty_with),
        ("decorated over a plain call", probe_call, plain_call),
    ):
        costs = [a - b for a, b in zip(rounds[way], rounds[against], strict=True)]
        low, middle, high = statistics.quantiles(costs, n=4)
        held = middle <= TARGET_US
        missed += not held
        print(f"  {label:36} {middle:.2f} ({low:.2f}-{high:.2f}); target {TARGET_US:g}: {'met' if held else 'missed'}")
    return missed


def with_statistics(app: Probe) -> int:
    """Print what statistics add to a body's time; return 1 if that is more than the budget and what noise there is."""
    image, logits = (
        np.random.default_rng(1).random((1, 96, 96, 3), dtype=np.float32),
        np.zeros((1, 10), dtype=np.float32),
    )
    taken_ns = 0
    calls = 0
    samples_before = app._samples
    costs_ns: list[int] = []
    take = app._sample

    def counted(*args: object, **kwargs: object) -> None:
        start_ns = perf_counter_ns()
        take(*args, **kwargs)  # type: ignore[arg-type]
        costs_ns.append(perf_counter_ns() - start_ns)

    app._sample = counted  # type: ignore[method-assign]
    deadline_s = time.monotonic() + PART_S
    while time.monotonic() < deadline_s:
        start_ns = perf_counter_ns()
        with app.observing() as call:
            call.input(image)
            end_ns = perf_counter_ns() + int(BODY_US * 1000)
            while perf_counter_ns() < end_ns:
                pass
            call.output(logits)
        taken_ns += perf_counter_ns() - start_ns
        calls += 1
    spent_ratio = sum(costs_ns) / (taken_ns - sum(costs_ns))
    print(
        f"statistics of a 96 × 96 × 3 input and 10 classes, a body of {BODY_US:g} µs, budget {BUDGET_RATIO:.0%}: "
        f"{app._samples - samples_before} of {calls} calls sampled (1 in {app.one_in} at last), "
        f"{statistics.median(costs_ns) / 1000:.0f} µs each, {spent_ratio:.2%} of the inference time"
    )
    held = spent_ratio <= 1.25 * BUDGET_RATIO
    print(f"  target {BUDGET_RATIO:.0%}, and a quarter of it for the first samples: {'met' if held else 'missed'}")
    return int(not held)


def reading(directory: Path) -> None:
    """Print what the agent takes to read a full ring and to close its window."""
    intake = Intake(directory, kept=directory / "kept.json", budget_ratio=BUDGET_RATIO)
    intake.close_windows(length_s=1.0, uptime_s=0.0, wall_s=0.0)
    app = Probe("read", directory=directory)
    takes_ms = []
    for _ in range(10):
        for _ in range(probe.RECORD_SLOTS):
            with app.timing():
                pass
        start_ns = time.process_time_ns()
        closed = intake.close_windows(length_s=1.0, uptime_s=0.0, wall_s=0.0)
        takes_ms.append((time.process_time_ns() - start_ns) / 1e6)
        # The rings of what was measured before are still there.
        (window,) = [one for one in closed if one.app == "read"]
        assert window.calls == probe.RECORD_SLOTS
    print(f"reading a ring of {probe.RECORD_SLOTS:,} calls: {statistics.median(takes_ms):.1f} ms of processor time")
    start_ns = time.process_time_ns()
    for _ in range(100):
        intake.poll()
    print(f"looking at a ring with nothing new: {(time.process_time_ns() - start_ns) / 1e8:.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
