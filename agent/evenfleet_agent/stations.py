"""Keep the variants of the running release in runners, and have one after another measured.

Decides whose turn it is and when a runner that failed is started again. Leaves to `schedule` when a window is due, to
`window` what a measurement comes to, and tells what it found as values: `supervisor` makes messages of them.

* One thing is measured at a time, for two runners would measure each other.
* Whatever a runner does, the loop goes on: one that fails is reported, and started again after a growing pause.
* A request to measure a variant that cannot be measured now is answered all the same.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Union

import msgspec

from evenfleet_agent import leak, predict, window
from evenfleet_agent.clock import Clock
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.host import conditions
from evenfleet_agent.host.conditions import Look
from evenfleet_agent.machine import Machine
from evenfleet_agent.rollout import Offer
from evenfleet_agent.runner import Runner
from evenfleet_agent.runner.protocol import (
    Failed,
    Layered,
    Layers,
    Loaded,
    Measure,
    Measured,
    NotLayered,
    Refused,
    Response,
    RunnerSpec,
    on_golden_set,
)
from evenfleet_agent.slots import Slots
from evenfleet_agent.window import Surroundings, WindowBody
from evenfleet_shared import layers
from evenfleet_shared.errors import RunnerError
from evenfleet_shared.manifest import Manifest, Variant
from evenfleet_shared.messages import Limit, RunContext, comparability

log = logging.getLogger(__name__)

RESTART_FIRST_S: Final = 1.0
RESTART_MAX_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A variant was measured; `order` is the correlation id of the command that asked for it, None for a window's turn."""

    variant: Variant
    run: RunContext
    body: WindowBody
    starts: int
    order: str | None


@dataclass(frozen=True, slots=True)
class VariantRefused:
    """This device cannot run a variant."""

    variant: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunnerFailed:
    """A runner crashed, hung, leaked, or was killed; it is started again."""

    variant: str
    reason: str


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """What a command asked for cannot be done."""

    order: str
    reason: str


@dataclass(frozen=True, slots=True)
class Looked:
    """What a command `layers` asked for: the fields of `evenfleet_shared.layers.Layers`."""

    order: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NotShown:
    """What a command `layers` asked for cannot be had of this variant on this device."""

    order: str
    reason: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """The running release is no longer whole on disk."""


Finding = Union[Taken, VariantRefused, RunnerFailed, NotMeasured, Looked, NotShown, Vanished]


@dataclass(slots=True)
class _Station:
    """One variant and the runner that measures it."""

    variant: Variant
    runner: Runner
    limits: tuple[Limit, ...] = ()
    loaded: Loaded | None = None
    starts: int = 0
    failures: int = 0
    restart_s: float | None = None
    # After its first window, when everything that a run needs is there.
    settled_bytes: int | None = None
    resident_bytes: int | None = None
    history: leak.History = field(default_factory=leak.History)
    # The last p50, and in which circumstances: it says what other models can be expected to take in the same.
    p50_ms: float | None = None
    alike: tuple[str, str] | None = None
    standing: str = "starting"

    def unload(self, standing: str) -> None:
        """End the runner; `standing` says why there is none."""
        self.runner.stop()
        self.loaded, self.standing = None, standing


@dataclass(slots=True)
class _Turn:
    """Whose turn it is on the one bench: loading or measuring; or, beside measuring, looking at its operators."""

    station: _Station
    measuring: bool = False
    looking: bool = False
    order: str | None = None
    sustained_s: float = 0.0
    offline_s: float = 0.0
    look: Look | None = None
    ooms: int | None = None


@dataclass(slots=True)
class _Release:
    """What runs."""

    digest: str
    manifest: Manifest
    stations: dict[str, _Station] = field(default_factory=dict)


class Stations:
    """The runners of one device."""

    def __init__(
        self, settings: AgentSettings, slots: Slots, new_runner: Callable[[], Runner], machine: Machine, clock: Clock
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._new_runner = new_runner
        self._machine = machine
        self._clock = clock
        self._release: _Release | None = None
        self._queue: deque[_Turn] = deque()
        self._turn: _Turn | None = None
        self._findings: list[Finding] = []
        # Set until another release is opened: nothing can be loaded of this one.
        self._vanished = False

    @property
    def release(self) -> str:
        """Return the digest of what runs, empty where nothing does."""
        return self._release.digest if self._release else ""

    @property
    def idle(self) -> bool:
        """Return whether nothing is being measured or loaded, nor waiting to be."""
        return self._turn is None and not self._queue

    @property
    def variants(self) -> tuple[str, ...]:
        """Return the names of what is to be run."""
        return tuple(self._release.stations) if self._release else ()

    def open(self, offer: Offer, limits: Mapping[str, Sequence[Limit]]) -> bool:
        """Load the variants of a release from the running slot; False where the slot does not hold it.

        Args:
            offer: The release and its variants.
            limits: To count against, by variant.
        """
        found = self._slots.release()
        described = {variant.name: variant for variant in found[0].variants} if found else {}
        if found is None or found[1] != offer.release or not described.keys() >= set(offer.variants):
            log.error("the running slot does not hold release %s; fetching it again", offer.release[:12])
            return False
        manifest, digest = found
        self._release = _Release(digest, manifest)
        for name in offer.variants:
            station = _Station(described[name], self._new_runner(), tuple(limits.get(name, ())))
            self._release.stations[name] = station
            self._queue.append(_Turn(station))
        return True

    def close(self) -> None:
        """End every runner."""
        for station in self._all():
            station.runner.stop()
        self._abandon("the release was taken away")
        self._release = None
        self._vanished = False

    def count_against(self, limits: Mapping[str, Sequence[Limit]]) -> None:
        """Count samples against these limits from now on, by variant."""
        for station in self._all():
            station.limits = tuple(limits.get(station.variant.name, ()))

    def measure_all(self) -> int:
        """Have every variant that can be measured measured; return how many."""
        turns = [_Turn(station, measuring=True) for station in self._all() if station.loaded]
        self._queue.extend(turns)
        return len(turns)

    def measure(self, order: str, variant: str | None, *, sustained_s: float = 0.0, offline_s: float = 0.0) -> int:
        """Have one variant measured before what waits, or all of them; return how many, each of which is answered.

        Args:
            order: The command's correlation id, which `Taken` and `NotMeasured` repeat.
            variant: None for all.
            sustained_s: Load it without a pause for so long, too.
            offline_s: Run its largest batches back to back for so long, too.
        """
        wanted = [station for station in self._all() if variant in (None, station.variant.name)]
        for station in reversed(wanted):
            self._queue.appendleft(
                _Turn(station, measuring=True, order=order, sustained_s=sustained_s, offline_s=offline_s)
            )
        return len(wanted)

    def look(self, order: str, variant: str) -> int:
        """Have one variant's operators looked at before what waits; return 1, for it is answered."""
        station = next(station for station in self._all() if station.variant.name == variant)
        self._queue.appendleft(_Turn(station, measuring=True, looking=True, order=order))
        return 1

    def forget(self, order: str) -> None:
        """Measure nothing more for a command that is over; what it measures now is ended with its runner."""
        self._queue = deque(turn for turn in self._queue if turn.order != order)
        if self._turn and self._turn.order == order:
            station, self._turn = self._turn.station, None
            self._load_anew(station)

    def restart(self, variant: str | None) -> int:
        """End one variant's runner, or all, and start it again at once; return how many."""
        wanted = [station for station in self._all() if variant in (None, station.variant.name)]
        for station in wanted:
            if self._turn and self._turn.station is station:
                self._end_turn("its runner was restarted")
            station.failures, station.restart_s = 0, None
            self._queue = deque(turn for turn in self._queue if turn.station is not station or turn.measuring)
            self._load_anew(station)
        return len(wanted)

    def work(self, now_s: float) -> list[Finding]:
        """Do everything that is due, and return what was found since the last call."""
        self._poll()
        for station in self._all():
            if station.restart_s is not None and now_s >= station.restart_s:
                station.restart_s = None
                self._queue.append(_Turn(station))
        self._begin_turn()
        findings, self._findings = self._findings, []
        return findings

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when the runner whose turn it is has something to say."""
        return self._turn.station.runner.fileno() if self._turn else None

    def due_s(self) -> float | None:
        """Return when something is due though no runner says anything: a restart, or a sign of life."""
        due = [station.restart_s for station in self._all()]
        if self._turn is not None:
            due.append(self._turn.station.runner.deadline_s)
        return min((at_s for at_s in due if at_s is not None), default=None)

    @property
    def standing(self) -> dict[str, str]:
        """Return of each variant in a few words whether it can be measured, and why not."""
        return {station.variant.name: station.standing for station in self._all()}

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the processes that measure."""
        return tuple(station.runner.pid for station in self._all() if station.runner.pid is not None)

    def _all(self) -> list[_Station]:
        return list(self._release.stations.values()) if self._release else []

    def _begin_turn(self) -> None:
        while self._turn is None and self._queue and not self._vanished:
            turn = self._queue.popleft()
            station = turn.station
            if turn.measuring and not station.loaded:
                if turn.order:
                    self._findings.append(
                        NotMeasured(
                            turn.order, f"variant {station.variant.name} cannot be measured now: {station.standing}"
                        )
                    )
                continue
            if not turn.measuring and not self._has(station.variant):
                log.error("the running release is no longer whole on disk; fetching it again")
                self._abandon("the release is no longer whole on disk")
                self._vanished = True
                self._findings.append(Vanished())
                return
            self._turn = turn
            turn.ooms = self._machine.out_of_memory_kills()
            try:
                if turn.looking:
                    station.runner.send(Layers(lock_file=self._settings.measure.lock_file))
                elif turn.measuring:
                    turn.look = self._machine.look()
                    station.runner.send(self._measure(turn))
                else:
                    station.starts += 1
                    station.settled_bytes, station.resident_bytes, station.history = None, None, leak.History()
                    station.runner.start(self._spec(station.variant))
            except RunnerError as error:
                self._fail(station, str(error))

    def _load_anew(self, station: _Station) -> None:
        """End a runner and load its variant again, before what waits."""
        station.unload("starting")
        self._queue.appendleft(_Turn(station))

    def _abandon(self, reason: str) -> None:
        """Do nothing more of what was to be done."""
        orders = [turn.order for turn in (self._turn, *self._queue) if turn and turn.order]
        self._findings += [NotMeasured(order, reason) for order in orders]
        self._queue.clear()
        self._turn = None

    def _poll(self) -> None:
        # An answer may bring the next turn, whose answer may be there already.
        while (turn := self._turn) is not None:
            try:
                answers = turn.station.runner.receive()
            except RunnerError as error:
                self._fail(turn.station, str(error))
                return
            if not answers:
                return
            for answer in answers:
                self._hear(turn, answer)
                if self._turn is not turn:
                    break  # it has failed: what it said after that is of no use
            self._turn = None
            self._begin_turn()

    def _hear(self, turn: _Turn, answer: Response) -> None:
        station = turn.station
        asked = (Layered, NotLayered) if turn.looking else (Measured,) if turn.measuring else (Loaded,)
        if not isinstance(answer, (*asked, Refused, Failed)):
            self._fail(station, f"answered {type(answer).__name__}, which was not asked for")
        elif isinstance(answer, Loaded):
            station.loaded, station.standing = answer, "ready"
            log.info(
                "variant %s runs on %s %s", station.variant.name, self._settings.runtime.name, answer.runtime_version
            )
        elif isinstance(answer, Refused):
            station.unload(f"refused: {answer.reason}")
            log.warning("variant %s is refused here: %s", station.variant.name, answer.reason)
            self._findings.append(VariantRefused(station.variant.name, answer.reason))
            self._end_turn(answer.reason)
        elif isinstance(answer, Measured):
            try:
                self._findings.append(self._taken(turn, answer))
            except ValueError as error:
                self._fail(station, f"answered nonsense: {error}")
            else:
                turn.order = None  # it is answered, whatever becomes of the runner
                self._watch_growth(station)
        elif isinstance(answer, Layered):
            self._looked(turn, answer)
        elif isinstance(answer, NotLayered):
            station.settled_bytes, station.history = None, leak.History()
            if turn.order:
                self._findings.append(NotShown(turn.order, answer.reason))
        elif isinstance(answer, Failed):
            self._fail(station, answer.reason)

    def _taken(self, turn: _Turn, measured: Measured) -> Taken:
        station, before, now = turn.station, turn.look, self._machine.look()
        assert self._release is not None
        assert station.loaded is not None
        assert before is not None
        pid = station.runner.pid
        resident_bytes = self._machine.resident_bytes(pid) if pid is not None else None
        if resident_bytes is not None:
            station.resident_bytes = resident_bytes
            station.settled_bytes = station.settled_bytes or resident_bytes
            station.history = leak.with_reading(station.history, self._clock.monotonic_s(), resident_bytes)
        run = self._machine.run_context(self._settings, station.loaded)
        station.alike = (station.variant.format, comparability(run))
        body = window.close(
            measured,
            limits=station.limits,
            golden=self._release.manifest.golden.digest,
            surroundings=Surroundings(
                conditions=conditions.between(before, now),
                throttled=conditions.throttled(before, now),
                leak=leak.slope(station.history),
                prediction=self._predicted(station),
                macs=station.variant.macs,
            ),
        )
        station.p50_ms = body.latency.p50_ms
        return Taken(
            variant=station.variant,
            run=run,
            body=body,
            starts=station.starts,
            order=turn.order,
        )

    def _looked(self, turn: _Turn, answer: Layered) -> None:
        station = turn.station
        assert self._release is not None
        assert station.loaded is not None
        # What another interpreter leaves behind is no leak of this one.
        station.settled_bytes, station.history = None, leak.History()
        if turn.order:
            found = msgspec.to_builtins(
                layers.Layers(
                    artifact=station.variant.artifact.sha256,
                    golden=self._release.manifest.golden.digest,
                    variant=station.variant.name,
                    runtime=self._settings.runtime.name,
                    runtime_version=station.loaded.runtime_version[:100],
                    executed=answer.executed,
                    delegated_ratio=answer.delegated_ratio,
                    sample=answer.sample,
                    outputs=answer.outputs,
                    layers=answer.layers,
                    note=answer.note,
                )
            )
            self._findings.append(Looked(turn.order, found))

    def _predicted(self, station: _Station) -> predict.Prediction | None:
        """Return what the device's other models let expect of this one."""
        return predict.among(_run(station), [_run(one) for one in self._all() if one is not station])

    def _watch_growth(self, station: _Station) -> None:
        """End a runner that has grown by more than it may; one that stays small has not failed."""
        now_bytes = station.resident_bytes or 0
        grown_bytes = now_bytes - (station.settled_bytes or now_bytes)
        if grown_bytes > self._settings.runtime.max_growth_bytes:
            self._fail(
                station,
                f"leaks: it has grown by {grown_bytes / 1e6:.0f} MB since its first window, to {now_bytes / 1e6:.0f} MB; "
                "ended before it takes the device's memory (runtime.max_growth_bytes)",
            )
        else:
            station.failures = 0

    def _fail(self, station: _Station, reason: str) -> None:
        if self._turn and self._turn.ooms is not None and "SIGKILL" in reason:
            now = self._machine.out_of_memory_kills()
            if now is not None and now > self._turn.ooms:
                reason = f"{reason}; the kernel's out-of-memory killer struck meanwhile"
        station.unload(f"failed, starting again: {reason}")
        wait_s = min(RESTART_MAX_S, RESTART_FIRST_S * 2**station.failures)
        station.failures = min(station.failures + 1, 30)
        station.restart_s = self._clock.monotonic_s() + wait_s
        log.warning("runner of variant %s: %s; started again in %.0f s", station.variant.name, reason, wait_s)
        self._findings.append(RunnerFailed(station.variant.name, reason))
        self._end_turn(reason)

    def _end_turn(self, reason: str) -> None:
        turn, self._turn = self._turn, None
        if turn and turn.order:
            self._findings.append(NotMeasured(turn.order, reason))

    def _has(self, variant: Variant) -> bool:
        assert self._release is not None
        return self._slots.has(variant, self._release.manifest.golden)

    def _spec(self, variant: Variant) -> RunnerSpec:
        slot = self._slots.current()
        assert slot is not None
        assert self._release is not None
        settings = self._settings
        spec = RunnerSpec(
            runtime=settings.runtime.name,
            artifact=str(slot / variant.artifact.file),
            format=variant.format,
            threads=settings.runtime.threads,
            xnnpack=settings.runtime.xnnpack,
            delegate=settings.runtime.delegate,
            delegate_options=settings.runtime.delegate_options,
            input_scale=settings.planted_fault.input_scale,
            warm_up_max_s=settings.measure.warm_up_max_s,
            lock_file=settings.measure.lock_file,
            python=settings.runtime.python,
        )
        return on_golden_set(spec, self._release.manifest, str(slot), correct=variant.reference.correct)

    def _measure(self, turn: _Turn) -> Measure:
        settings = self._settings.measure
        return Measure(
            samples=settings.samples,
            min_duration_s=min(settings.min_duration_s, settings.max_duration_s),
            max_duration_s=settings.max_duration_s,
            min_sample_s=settings.min_sample_s,
            leave_out_waiting=settings.leave_out_waiting,
            lock_file=settings.lock_file,
            cadence_ms=settings.cadence_ms,
            sustained_s=turn.sustained_s,
            offline_s=turn.offline_s,
        )


def _run(station: _Station) -> predict.Run:
    variant = station.variant
    return predict.Run(
        size_bytes=variant.artifact.size_bytes, macs=variant.macs, p50_ms=station.p50_ms, alike=station.alike
    )
