"""Run a device: one loop that wires the broker, the outbox, the slots, the download and the runners together.

Performs what the rules (`rollout`, `schedule`, `window`) decide, and decides nothing of its own beyond the order.
Imports no runtime and no numpy: what those cost is in the runners, and ends with them.

* One thing is measured at a time, for two runners would measure each other.
* Whatever a runner does, the loop goes on: a runner that fails is reported, and started again after a growing pause.
* A message is in the outbox before it is published, and stays until its receipt.
* A disk that is full or fails ends nothing: what cannot be kept is not kept, what cannot be read waits, and the log says
  so once for each reason.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import secrets
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from evenfleet_agent import host, rollout, window
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.fetch import Fetcher, FetchResult
from evenfleet_agent.host import thermal
from evenfleet_agent.host.thermal import Throttling
from evenfleet_agent.link import Connected, Disconnected, Link, LinkEvent, Received
from evenfleet_agent.outbox import Outbox
from evenfleet_agent.rollout import Offer, Rollout
from evenfleet_agent.runner import Runner
from evenfleet_agent.runner.protocol import (
    Failed,
    Loaded,
    Measure,
    Measured,
    Refused,
    Response,
    RunnerSpec,
    on_golden_set,
)
from evenfleet_agent.schedule import next_window_s
from evenfleet_agent.slots import Slots
from evenfleet_agent.standing import StandingFile
from evenfleet_shared import __version__, messages, topics
from evenfleet_shared.disk import write_whole
from evenfleet_shared.errors import MessageError, RunnerError, StoreError
from evenfleet_shared.manifest import Manifest, Variant
from evenfleet_shared.messages import (
    Context,
    Desired,
    Event,
    Incarnation,
    Limit,
    Numbered,
    Receipt,
    RunContext,
    State,
    Window,
)

log = logging.getLogger(__name__)

# Messages read from the outbox at a time: each is in memory until it is published.
SEND_BATCH: Final = 50
RESTART_FIRST_S: Final = 1.0
RESTART_MAX_S: Final = 300.0
IDLE_S: Final = 60.0
# A failing disk is not asked again at every turn.
STORE_RETRY_S: Final = 30.0
# A collector that lost its data knows a later incarnation once; another client with our id brings them again and again.
RIVAL_INCARNATIONS: Final = 3
RIVAL_WITHIN_S: Final = 600.0
DESIRED_NAME: Final = "desired.json"


class Clock(Protocol):
    """Where the time comes from."""

    def monotonic_s(self) -> float:
        """Return seconds that never go back."""

    def wall_s(self) -> float:
        """Return seconds since 1970 by the device's wall clock, right or wrong."""


class SystemClock:
    """The device's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


@dataclass(slots=True)
class _Station:
    """One variant of the running release and the runner that measures it."""

    variant: Variant
    runner: Runner
    limits: tuple[Limit, ...] = ()
    ready: bool = False
    context: str | None = None
    starts: int = 0
    failures: int = 0
    restart_s: float | None = None


@dataclass(slots=True)
class _Turn:
    """Whose turn it is on the one bench: loading or measuring."""

    station: _Station
    measuring: bool = False
    throttling: Throttling | None = None


class Supervisor:
    """The agent on one device."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        state_dir: Path,
        outbox: Outbox,
        standing: StandingFile,
        link: Link,
        slots: Slots,
        fetcher: Fetcher,
        new_runner: Callable[[], Runner],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._desired_path = state_dir / DESIRED_NAME
        self._outbox = outbox
        self._standing = standing
        self._link = link
        self._slots = slots
        self._fetcher = fetcher
        self._new_runner = new_runner
        self._clock = clock
        self._desired: Desired | None = _read_desired(self._desired_path)
        self._manifest: Manifest | None = None
        self._release = ""
        self._rollout = Rollout()
        self._stations: dict[str, _Station] = {}
        self._queue: deque[_Turn] = deque()
        self._turn: _Turn | None = None
        self._window_due_s: float | None = None
        self._session: str | None = None
        self._offline_reason: str | None = None
        self._contexts: dict[str, RunContext] = {}
        self._told_contexts: set[tuple[Incarnation, str]] = set()
        # What is wrong with the disk, by what it was asked for.
        self._store_troubles: dict[str, str] = {}
        self._store_retry_s = -math.inf
        self._not_kept = 0
        # When the collector knew a later incarnation, lately.
        self._overtaken_s: deque[float] = deque()
        self._rival_told = False

    def start(self) -> None:
        """Take up what the last process left, and connect."""
        if self._desired:
            running = self._left_running(self._desired)
            if running:
                self._rollout = rollout.resumed(running)
                self._perform((rollout.StartRunners(running),))
            self._follow(self._desired)
        self._standing.disconnected("no broker has answered yet", self._clock.monotonic_s())
        self._link.open()

    def turn(self) -> float:
        """Do everything that is due.

        Returns:
            The monotonic time at which something else will be due, if nothing happens before.
        """
        for event in self._link.events():
            self._on_link(event)
        self._poll_fetch()
        self._poll_runner()
        now_s = self._clock.monotonic_s()
        if self._rollout.retry_s is not None and now_s >= self._rollout.retry_s:
            self._step(rollout.RetryDue())
        self._restart_failed(now_s)
        self._begin_window(now_s)
        self._next_turn()
        self._exchange(now_s)
        return self._next_due_s(now_s)

    def waitables(self) -> list[int]:
        """Return the descriptors that may bring the next event."""
        waiting = [self._fetcher.fileno()] if self._rollout.target else []
        if self._turn:
            waiting.append(self._turn.station.runner.fileno())
        return [descriptor for descriptor in waiting if descriptor is not None]

    def stop(self) -> None:
        """End the runners, say goodbye and close."""
        self._fetcher.stop()
        for station in self._stations.values():
            station.runner.stop()
        self._link.close(self._state("gone", self._session or "00000000"))
        self._standing.disconnected("the agent was told to stop", self._clock.monotonic_s())
        self._outbox.close()

    def will(self, session: str) -> bytes:
        """Return what the broker shall publish if a session dies.

        Called from the client's thread, where the outbox cannot be asked: a will says nothing of numbers.
        """
        return self._encode_state("lost", session, seq=0, floor=1)

    # the broker

    def _on_link(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            # As loud as the loss was, for the last line of a log to be true.
            log.log(logging.WARNING if self._offline_reason else logging.INFO, "connected to the broker")
            self._session, self._offline_reason = event.session, None
            self._standing.connected(self._clock.monotonic_s())
            self._outbox.reconnected()
            # What the collector was told may be gone: from a full outbox, or with the collector's disk.
            self._told_contexts.clear()
            self._link.publish("state", self._state("birth", event.session), retain=True)
        elif isinstance(event, Disconnected):
            # Once for each reason, not at every try.
            reason = f"{event.reason} ({self._identity()})" if event.refused else event.reason
            if self._session or reason != self._offline_reason:
                log.warning("no broker session: %s; measuring goes on, messages wait in the outbox", reason)
            self._session, self._offline_reason = None, reason
            self._standing.disconnected(reason, self._clock.monotonic_s())
        else:
            self._on_received(event)

    def _on_received(self, event: Received) -> None:
        try:
            topic = topics.parse(event.topic)
            if not event.payload:
                return  # a retained message was cleared
            message = messages.decode(topic.kind, event.payload)
        except MessageError as error:
            log.warning("ignored a message on %s: %s", event.topic, error)
            return
        if message.device != self._settings.device:
            log.warning("ignored a message for %s on %s", message.device, event.topic)
        elif isinstance(message, Receipt):
            self._on_receipt(message)
        elif isinstance(message, Desired) and (self._desired is None or message.revision > self._desired.revision):
            self._keep_desired(message)
            self._follow(message)

    def _on_receipt(self, receipt: Receipt) -> None:
        self._standing.receipted(self._clock.monotonic_s())
        try:
            begun = self._outbox.settle(receipt, self._clock.monotonic_s())
        except StoreError as error:
            self._store_fails("receipt", error, "the next receipt says the same again")
            return
        self._store_works("receipt")
        self._look_for_rival(begun=begun)
        if begun:
            if not self._rival_told:
                log.warning(
                    "the collector knows a later incarnation of this device; began %d", self._outbox.incarnation[0]
                )
            if self._session:
                self._link.publish("state", self._state("birth", self._session), retain=True)

    def _look_for_rival(self, *, begun: bool) -> None:
        """Say once when another client takes this one's place again and again, until it no longer does."""
        now_s = self._clock.monotonic_s()
        if begun:
            self._overtaken_s.append(now_s)
        while self._overtaken_s and self._overtaken_s[0] <= now_s - RIVAL_WITHIN_S:
            self._overtaken_s.popleft()
        if len(self._overtaken_s) >= RIVAL_INCARNATIONS and not self._rival_told:
            self._rival_told = True
            trouble = (
                f"another client seems to use the device id {self._settings.device} at the same broker, perhaps a copy "
                "of this device; give each device its own id with 'evenfleet device enrol'"
            )
            log.error(
                "%s (the collector knew a later incarnation %d times within %.0f minutes)",
                trouble,
                len(self._overtaken_s),
                RIVAL_WITHIN_S / 60,
            )
            self._standing.troubled(trouble)
        elif self._rival_told and not self._overtaken_s:
            self._rival_told = False
            self._standing.troubled(None)

    def _identity(self) -> str:
        file = self._settings.broker.password_file
        return (
            f"device id {self._settings.device}, {f'token file {file}' if file else 'broker.password_file is not set'}"
        )

    def _exchange(self, now_s: float) -> None:
        # Losses are not told while nobody can hear: each event would take the place of more messages, which would be
        # losses to tell.
        if self._session is None or now_s < self._store_retry_s:
            return
        try:
            self._tell_losses()
            self._send(now_s)
        except StoreError as error:
            self._store_retry_s = now_s + STORE_RETRY_S
            self._store_fails("send", error, "messages wait")
        else:
            self._store_works("send")

    def _send(self, now_s: float) -> None:
        while entries := self._outbox.due(now_s, SEND_BATCH):
            for entry in entries:
                if not self._link.publish(entry.kind, entry.payload):
                    return
                self._outbox.sent(entry.key, now_s)

    def _state(self, status: str, session: str) -> bytes:
        try:
            seq, floor = self._outbox.last_seq, self._outbox.floor()
        except StoreError as error:
            self._store_fails("state", error, "the collector is told no numbers")
            seq, floor = 0, 1
        else:
            self._store_works("state")
        return self._encode_state(status, session, seq=seq, floor=floor)

    def _encode_state(self, status: str, session: str, *, seq: int, floor: int) -> bytes:
        return messages.encode(
            State(
                device=self._settings.device,
                incarnation=self._outbox.incarnation,
                seq=seq,
                floor=floor,
                status=status,  # type: ignore[arg-type]
                session=session,
                device_class=self._settings.device_class,
                agent_version=__version__,
                formats=self._settings.formats,
                desired_revision=self._desired.revision if self._desired else 0,
                contexts=tuple(self._contexts)[:64],
            )
        )

    # the release

    def _keep_desired(self, desired: Desired) -> None:
        """Remember what to run across a restart without a network."""
        try:
            write_whole(self._desired_path, messages.encode(desired))
        except OSError as error:
            log.warning("cannot keep %s: %s; a restart waits for the collector", self._desired_path, error.strerror)

    def _left_running(self, desired: Desired) -> Offer | None:
        """Return what can go on from the running slot: an older release too, until the desired one is here."""
        found = self._slots.release()
        if found is None:
            return None
        described, release = found
        whole = [variant.name for variant in described.variants if self._slots.has(variant, described.golden)]
        if release == desired.release:
            return Offer(release, tuple(wanted.name for wanted in desired.variants if wanted.name in whole))
        return Offer(release, tuple(whole)) if whole else None

    def _follow(self, desired: Desired) -> None:
        if self._desired and desired.window_length_s < self._desired.window_length_s and self._window_due_s is not None:
            self._window_due_s = min(self._window_due_s, self._clock.monotonic_s() + desired.window_length_s)
        self._desired = desired
        limits = self._limits(self._release)
        for name, station in self._stations.items():
            station.limits = limits.get(name, ())
        self._step(rollout.Offered(_offer(desired)) if desired.release else rollout.Withdrawn())

    def _limits(self, release: str) -> dict[str, tuple[Limit, ...]]:
        """Return the limits to count against by variant: none, where those that we know are of another release."""
        if self._desired is None or self._desired.release != release:
            return {}
        return {wanted.name: wanted.limits for wanted in self._desired.variants}

    def _step(self, event: rollout.Event) -> None:
        before = self._rollout
        self._rollout, actions = rollout.step(before, event, self._clock.monotonic_s())
        try:
            self._perform(actions)
        except StoreError as error:
            # Only `Switch` raises it, and by then the runners have been stopped.
            log.error("%s", error)  # noqa: TRY400 - one line, the cause is in it
            failure = error
        else:
            return
        self._rollout = before
        if before.running:
            self._start_stations(before.running)
        self._step(rollout.FetchFailed(str(failure), "link"))

    def _perform(self, actions: Sequence[rollout.Action]) -> None:
        for action in actions:
            if isinstance(action, rollout.StartFetch):
                assert self._desired is not None
                offer = action.offer
                log.info("fetching release %s", offer.release[:12])
                try:
                    self._fetcher.start(self._desired.artifacts_url, offer.release, offer.variants, self._slots.idle())
                except OSError as error:
                    # No process or no memory is left; what there was of the offer stands.
                    self._fetch_failed(FetchResult(ok=False, reason=f"cannot start the download: {error.strerror}"))
            elif isinstance(action, rollout.StopFetch):
                self._fetcher.stop()
            elif isinstance(action, rollout.Switch):
                self._slots.switch()
            elif isinstance(action, rollout.StartRunners):
                self._start_stations(action.offer)
            elif isinstance(action, rollout.StopRunners):
                self._stop_stations()
            else:
                log.info("%s: %s %s", action.event, action.release[:12], action.detail)
                self._tell(action.event, release=action.release, detail=action.detail)

    def _poll_fetch(self) -> None:
        result = self._fetcher.result()
        if result is None:
            return
        if result.ok:
            self._step(rollout.Fetched())
        else:
            self._fetch_failed(result)

    def _fetch_failed(self, result: FetchResult) -> None:
        log.warning("%s", result.reason)
        self._step(rollout.FetchFailed(result.reason, result.cause))

    # the runners

    def _start_stations(self, offer: Offer) -> None:
        found = self._slots.release()
        described = {variant.name: variant for variant in found[0].variants} if found else {}
        if found is None or found[1] != offer.release or not described.keys() >= set(offer.variants):
            log.error("the running slot does not hold release %s; fetching it again", offer.release[:12])
            self._step(rollout.Vanished())
            return
        self._manifest, self._release = found
        limits = self._limits(self._release)
        for name in offer.variants:
            station = _Station(described[name], self._new_runner(), limits.get(name, ()))
            self._stations[name] = station
            self._queue.append(_Turn(station))
        self._window_due_s = None

    def _stop_stations(self) -> None:
        for station in self._stations.values():
            station.runner.stop()
        self._stations.clear()
        self._queue.clear()
        self._turn = None

    def _restart_failed(self, now_s: float) -> None:
        for station in self._stations.values():
            if station.restart_s is not None and now_s >= station.restart_s:
                station.restart_s = None
                self._queue.append(_Turn(station))

    def _begin_window(self, now_s: float) -> None:
        """Queue a measurement of every variant when a window is due, once all of the last one's are done."""
        if self._desired is None or self._turn or self._queue or not self._stations:
            return
        if self._window_due_s is not None and now_s < self._window_due_s:
            return
        length_s = self._desired.window_length_s
        self._window_due_s = next_window_s(now_s if self._window_due_s is None else self._window_due_s, length_s, now_s)
        self._queue.extend(_Turn(station, measuring=True) for station in self._stations.values() if station.ready)

    def _next_turn(self) -> None:
        while self._turn is None and self._queue:
            turn = self._queue.popleft()
            if turn.measuring and not turn.station.ready:
                continue
            if not turn.measuring and not self._has(turn.station.variant):
                log.error("the running release is no longer whole on disk; fetching it again")
                self._step(rollout.Vanished())
                return
            self._turn = turn
            try:
                if turn.measuring:
                    turn.throttling = thermal.throttling()
                    turn.station.runner.send(self._measure())
                else:
                    turn.station.starts += 1
                    turn.station.runner.start(self._spec(turn.station.variant))
            except RunnerError as error:
                self._on_failure(turn.station, error)

    def _has(self, variant: Variant) -> bool:
        assert self._manifest is not None
        return self._slots.has(variant, self._manifest.golden)

    def _poll_runner(self) -> None:
        # An answer may bring the next turn, whose answer may be there already.
        while (turn := self._turn) is not None:
            try:
                answers = turn.station.runner.receive()
            except RunnerError as error:
                self._on_failure(turn.station, error)
                return
            if not answers:
                return
            for answer in answers:
                self._on_answer(turn, answer)
            self._turn = None
            self._next_turn()

    def _on_answer(self, turn: _Turn, answer: Response) -> None:
        station = turn.station
        if isinstance(answer, Loaded):
            station.ready = True
            station.context = self._learn_context(answer)
            log.info(
                "variant %s runs on %s %s", station.variant.name, self._settings.runtime.name, answer.runtime_version
            )
        elif isinstance(answer, Refused):
            station.runner.stop()
            station.ready = False
            log.warning("variant %s is refused here: %s", station.variant.name, answer.reason)
            self._tell("variant-refused", release=self._release, variant=station.variant.name, detail=answer.reason)
        elif isinstance(answer, Measured):
            try:
                self._close_window(turn, answer)
            except ValueError as error:
                self._on_failure(station, RunnerError(f"answered nonsense: {error}"))
            else:
                station.failures = 0
        elif isinstance(answer, Failed):
            self._on_failure(station, RunnerError(answer.reason))

    def _on_failure(self, station: _Station, error: RunnerError) -> None:
        station.runner.stop()
        station.ready = False
        wait_s = min(RESTART_MAX_S, RESTART_FIRST_S * 2**station.failures)
        station.failures = min(station.failures + 1, 30)
        station.restart_s = self._clock.monotonic_s() + wait_s
        self._turn = None
        log.warning("runner of variant %s: %s; started again in %.0f s", station.variant.name, error, wait_s)
        self._tell("runner-failed", release=self._release, variant=station.variant.name, detail=str(error))

    def _spec(self, variant: Variant) -> RunnerSpec:
        slot = self._slots.current()
        assert slot is not None
        assert self._manifest is not None
        settings = self._settings
        spec = RunnerSpec(
            runtime=settings.runtime.name,
            artifact=str(slot / variant.artifact.file),
            format=variant.format,
            threads=settings.runtime.threads,
            xnnpack=settings.runtime.xnnpack,
            input_scale=settings.planted_fault.input_scale,
            warm_up_max_s=settings.measure.warm_up_max_s,
            lock_file=settings.measure.lock_file,
            python=settings.runtime.python,
        )
        return on_golden_set(spec, self._manifest, str(slot), correct=variant.reference.correct)

    def _measure(self) -> Measure:
        settings = self._settings.measure
        return Measure(
            samples=settings.samples,
            max_duration_s=settings.max_duration_s,
            min_sample_s=settings.min_sample_s,
            leave_out_waiting=settings.leave_out_waiting,
            lock_file=settings.lock_file,
        )

    # what goes up

    def _learn_context(self, loaded: Loaded) -> str:
        run = host.run_context(
            device_class=self._settings.device_class,
            runtime=self._settings.runtime.name,
            runtime_version=loaded.runtime_version,
            python=loaded.python,
            accelerator_requested=loaded.accelerator_requested,
            accelerator_executed=loaded.accelerator_executed,
            delegated_ratio=loaded.delegated_ratio,
            fallback_reason=loaded.fallback_reason,
            threads=self._settings.runtime.threads,
            attributes=self._settings.attributes,
        )
        digest = messages.context_digest(run)
        self._contexts[digest] = run
        return digest

    def _close_window(self, turn: _Turn, measured: Measured) -> None:
        station, context = turn.station, turn.station.context
        assert context is not None
        assert self._desired is not None
        assert self._manifest is not None
        assert turn.throttling is not None
        self._tell_context(context)
        body = window.close(measured, limits=station.limits, golden=self._manifest.golden.digest)
        length_s = self._desired.window_length_s
        throttled = thermal.throttled(turn.throttling, thermal.throttling())

        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return Window(
                device=self._settings.device,
                incarnation=incarnation,
                seq=seq,
                floor=floor,
                release=self._release,
                variant=station.variant.name,
                artifact=station.variant.artifact.sha256,
                context=context,
                length_s=length_s,
                ended_uptime_s=self._clock.monotonic_s(),
                ended_wall_s=self._clock.wall_s(),
                runner_start=station.starts,
                throttled=throttled,
                latency=body.latency,
                exceedances=body.exceedances,
                accuracy=body.accuracy,
                memory=body.memory,
            )

        self._append("window", make)

    def _tell_context(self, digest: str) -> None:
        """Send a run context once per incarnation and session, before the first window that names it."""
        key = (self._outbox.incarnation, digest)
        if key in self._told_contexts:
            return

        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return Context(
                device=self._settings.device,
                incarnation=incarnation,
                seq=seq,
                floor=floor,
                digest=digest,
                run=self._contexts[digest],
            )

        if self._append("context", make):
            self._told_contexts.add(key)

    def _tell_losses(self) -> None:
        losses = self._outbox.ledger()
        if losses and self._tell("loss", losses=tuple(losses)):
            self._outbox.told(losses)  # or they are told once more

    def _tell(
        self,
        event: str,
        *,
        release: str | None = None,
        variant: str | None = None,
        detail: str = "",
        losses: tuple[messages.Loss, ...] = (),
    ) -> bool:
        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            return Event(
                device=self._settings.device,
                incarnation=incarnation,
                seq=seq,
                floor=floor,
                event=event,  # type: ignore[arg-type]
                happened_uptime_s=self._clock.monotonic_s(),
                happened_wall_s=self._clock.wall_s(),
                release=release or None,
                variant=variant,
                # A path that is no UTF-8 may stand in it.
                detail=detail.encode(errors="replace").decode()[:500],
                losses=losses,
            )

        return self._append("event", make)

    def _append(self, kind: str, make: Callable[[Incarnation, int, int], Numbered]) -> bool:
        try:
            self._outbox.append(kind, make)
        except StoreError as error:
            # The disk is full or failing: the device goes on, and the next window tries again.
            self._not_kept += 1
            self._store_fails("keep", error, f"this {kind} is not kept, nor what comes until the disk works again")
            return False
        if self._not_kept:
            log.warning("the outbox can be written again; %d messages were not kept", self._not_kept)
            self._not_kept = 0
        self._store_works("keep")
        return True

    def _store_fails(self, doing: str, error: StoreError, consequence: str) -> None:
        """Log what is wrong with the disk when it begins or changes, not each time."""
        if self._store_troubles.get(doing) != str(error):
            self._store_troubles[doing] = str(error)
            log.error("%s; %s", error, consequence)

    def _store_works(self, doing: str) -> None:
        self._store_troubles.pop(doing, None)

    def _next_due_s(self, now_s: float) -> float:
        due = [now_s + IDLE_S]
        if self._session and self._store_retry_s > now_s:
            due.append(self._store_retry_s)
        if self._rollout.retry_s is not None:
            due.append(self._rollout.retry_s)
        due += [station.restart_s for station in self._stations.values() if station.restart_s is not None]
        if self._turn is not None:
            deadline_s = self._turn.station.runner.deadline_s
            due += [deadline_s] if deadline_s is not None else []
        elif self._stations and self._window_due_s is not None:
            due.append(self._window_due_s)
        return min(due)


def run(supervisor: Supervisor, wake: int, stopping: Callable[[], bool], clock: Clock) -> None:
    """Turn until told to stop, sleeping in between until something happens or is due.

    Args:
        supervisor: Not started yet.
        wake: A descriptor that becomes readable when the link has events, or a signal came.
        stopping: Asked after every wake-up.
        clock: The supervisor's.
    """
    supervisor.start()
    try:
        while not stopping():
            due_s = supervisor.turn()
            with selectors.DefaultSelector() as selector:
                for descriptor in {wake, *supervisor.waitables()}:
                    selector.register(descriptor, selectors.EVENT_READ)
                if any(key.fd == wake for key, _ in selector.select(max(0.0, due_s - clock.monotonic_s()))):
                    os.read(wake, 4096)
    finally:
        supervisor.stop()


def new_word() -> str:
    """Return a random word for an incarnation or a session."""
    return secrets.token_hex(8)


def boot_word() -> str:
    """Return a name for this boot of the device: the kernel's, or one made of when it was."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        booted_s = math.floor((time.time() - time.monotonic()) / 10)
        return hashlib.sha256(str(booted_s).encode()).hexdigest()[:32]


def _offer(desired: Desired) -> Offer:
    assert desired.release is not None
    # A name that comes twice would be two runners for one variant.
    return Offer(desired.release, tuple(dict.fromkeys(wanted.name for wanted in desired.variants)))


def _read_desired(path: Path) -> Desired | None:
    try:
        found: Desired = messages.decode("desired", path.read_bytes())
    except (OSError, MessageError):
        return None
    return found
