"""Run a device: one loop that wires the broker, the outbox, the slots, the download and the runners together.

Performs what the rules (`rollout`, `schedule`, `commands`) decide, and decides nothing of its own beyond the order. What is
measured is `stations`' to do, what goes up is `post`'s. Imports no runtime and no numpy: what those cost is in the runners,
and ends with them.

* What is desired is on disk before it is followed, as far as the disk takes it.
* A window begins when it is due, nothing else is being measured, and the agent owes no processor time.
"""

from __future__ import annotations

import logging
import os
import selectors
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from evenfleet_agent import commands, rival, rollout
from evenfleet_agent import machine as machines
from evenfleet_agent.clock import Clock
from evenfleet_agent.commands import Answer, Do, Wait
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.fetcher import Fetcher, FetchOrder, FetchResult
from evenfleet_agent.intake import Intake
from evenfleet_agent.link import Connected, Disconnected, Link, LinkEvent, Received
from evenfleet_agent.machine import Machine, SystemMachine
from evenfleet_agent.outbox import Outbox
from evenfleet_agent.post import Post
from evenfleet_agent.rival import Rival
from evenfleet_agent.rollout import Offer, Rollout
from evenfleet_agent.runner import Runner
from evenfleet_agent.schedule import Allowance, first_after_s, next_window_s
from evenfleet_agent.slots import Slots
from evenfleet_agent.standing import StandingFile
from evenfleet_agent.stations import (
    Looked,
    NotMeasured,
    NotShown,
    RunnerFailed,
    Stations,
    Taken,
    Vanished,
    VariantRefused,
)
from evenfleet_agent.systemd import ServiceManager
from evenfleet_shared import messages, topics
from evenfleet_shared.disk import write_whole
from evenfleet_shared.errors import MessageError, StoreError
from evenfleet_shared.messages import Command, Desired, Limit, Network, Overhead, Receipt

log = logging.getLogger(__name__)

IDLE_S: Final = 60.0
FAULT_PAUSE_MAX_S: Final = 60.0
MAX_FAULTS: Final = 20
DESIRED_NAME: Final = "desired.json"
# How long an application's window is while nobody has said how long windows are.
DEFAULT_APP_WINDOW_S: Final = 300.0
# A wall clock that moved by more than this against the monotonic one was set, not slewed.
CLOCK_JUMP_S: Final = 30.0
IGNORED_TOLD_EVERY_S: Final = 3600.0
TROUBLE_EVERY_S: Final = 60.0
# What an agent may take at once when it starts: to load its models.
FIRST_SAVED_S: Final = 600.0


@dataclass(slots=True)
class _Order:
    """A command to measure, or to look at operators: what is still to come of it, and what came."""

    command: Command
    open: int
    seqs: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Round:
    """One window of all variants: since when, how long after the one before, and what the agent had taken by then."""

    began_s: float
    length_s: float
    overhead: Overhead | None
    network: Network | None
    taken: machines.Taken


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
        machine: Machine | None = None,
        intake: Intake | None = None,
    ) -> None:
        self._settings = settings
        self._desired_path = state_dir / DESIRED_NAME
        self._outbox = outbox
        self._standing = standing
        self._link = link
        self._slots = slots
        self._fetcher = fetcher
        self._clock = clock
        self._machine = machine or SystemMachine()
        self._intake = intake
        self._post = Post(settings, outbox, link, clock)
        self._stations = Stations(settings, slots, new_runner, self._machine, clock)
        self._desired: Desired | None = _read_desired(self._desired_path)
        self._rollout = Rollout()
        self._rival = Rival()
        self._rival_trouble: str | None = None
        # Why what is desired does not run.
        self._release_trouble: str | None = None
        self._trouble_told: tuple[str | None, float] = (None, clock.monotonic_s())
        self._offline_reason: str | None = None
        # How the last session was spoken.
        self._transport: str | None = None
        self._book: commands.Book = ()
        self._orders: dict[str, _Order] = {}
        # By reason: when it was last said, and how many were ignored since.
        self._ignored: dict[str, tuple[float, int]] = {}
        # How the commands that are being done came.
        self._asked: dict[str, Received] = {}
        now_s = clock.monotonic_s()
        ratio = settings.schedule.max_cpu_ratio
        self._allowance = Allowance(ratio=ratio, saved_s=ratio * FIRST_SAVED_S, at_s=now_s)
        self._taken = self._machine.taken(())
        self._window_due_s: float | None = None
        # When the last window was due, on the grid; and whether the next one was put off since, for the processor's sake.
        self._last_due_s: float | None = None
        self._put_off = False
        self._round = _Round(now_s, 0.0, None, None, self._taken)
        self._wall_offset_s = clock.wall_s() - clock.uptime_s()
        self._poll_due_s = now_s
        self._apps_since_s = now_s

    def start(self) -> None:
        """Take up what the last process left, and connect."""
        if self._desired:
            self._post.desired_revision = self._desired.revision
            running = self._left_running(self._desired)
            if running:
                self._rollout = rollout.resumed(running)
                self._perform((rollout.StartRunners(running),))
            self._follow(self._desired)
        self._standing.disconnected("no broker has answered yet", self._clock.monotonic_s())
        if self._intake:
            self._intake.prepare()
        self._link.open()

    def turn(self) -> float:
        """Do everything that is due.

        Returns:
            The monotonic time at which something else will be due, if nothing happens before.
        """
        for event in self._link.events():
            self._on_link(event)
        self._poll_fetch()
        now_s = self._clock.monotonic_s()
        self._look_at_clock()
        self._work(now_s)
        if self._rollout.retry_s is not None and now_s >= self._rollout.retry_s:
            self._step(rollout.RetryDue())
        self._end_overdue_orders(now_s)
        if self._begin_window(now_s):
            self._work(now_s)
        self._read_probes(now_s)
        self._standing.runs(self._stations.standing)
        self._tell_trouble(now_s)
        self._post.exchange(now_s)
        return self._next_due_s(now_s)

    def send(self) -> None:
        """Send what is due, and nothing else."""
        self._post.exchange(self._clock.monotonic_s())

    def waitables(self) -> list[int]:
        """Return the descriptors that may bring the next event."""
        waiting = [self._fetcher.fileno() if self._rollout.target else None, self._stations.fileno()]
        return [descriptor for descriptor in waiting if descriptor is not None]

    def stop(self) -> None:
        """End the runners, say goodbye and close."""
        self._fetcher.stop()
        self._stations.close()
        self._link.close(self._post.farewell())
        self._standing.disconnected("the agent was told to stop", self._clock.monotonic_s())
        self._outbox.close()

    def will(self, session: str) -> bytes:
        """Return what the broker shall publish if a session dies; called from the link's thread."""
        return self._post.will(session)

    def sleeping(self, session: str) -> bytes:
        """Return what is said when the day's bytes are used up; called from the link's thread."""
        return self._post.sleeping(session)

    @property
    def status(self) -> str:
        """Return one line of how the agent is, for the service manager."""
        broker = "connected" if self._post.online else f"no broker session: {self._offline_reason or 'not yet'}"
        runs = f"release {self._stations.release[:12]}" if self._stations.release else "no release"
        return f"{broker}; {runs}, {len(self._stations.variants)} variants"

    # the broker

    def _on_link(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            # As loud as the loss was, for the last line of a log to be true.
            log.log(logging.WARNING if self._offline_reason else logging.INFO, "connected to the broker")
            self._offline_reason, self._transport = None, event.transport
            self._standing.connected(self._clock.monotonic_s())
            self._post.connected(event.session)
        elif isinstance(event, Disconnected):
            # Once for each reason, not at every try.
            reason = f"{event.reason} ({self._identity()})" if event.refused else event.reason
            if self._post.online or reason != self._offline_reason:
                log.warning("no broker session: %s; measuring goes on, messages wait in the outbox", reason)
            self._offline_reason = reason
            self._standing.disconnected(reason, self._clock.monotonic_s())
            self._post.disconnected()
            if event.asleep_s is not None:
                self._post.tell("budget-reached", detail=reason)
        else:
            self._on_received(event)

    def _on_received(self, event: Received) -> None:
        try:
            topic = topics.parse(event.topic)
            if not event.payload:
                return  # a retained message was cleared
            message = messages.decode(topic.kind, event.payload)
        except MessageError as error:
            self._ignore(error.reason, f"a message on {event.topic[:120]!r}: {error}"[:400])
            return
        if message.device != self._settings.device:
            self._ignore("device", f"a message for {message.device} on {event.topic[:120]!r}")
        elif isinstance(message, Receipt):
            self._on_receipt(message)
        elif isinstance(message, Command):
            self._on_command(message, event)
        elif isinstance(message, Desired) and (self._desired is None or message.revision > self._desired.revision):
            self._keep_desired(message)
            self._follow(message)

    def _ignore(self, reason: str, what: str) -> None:
        """Say what was ignored: once an hour for each reason, for a broker may send it a thousand times a second."""
        now_s = self._clock.monotonic_s()
        told_s, count = self._ignored.get(reason, (-IGNORED_TOLD_EVERY_S, 0))
        if now_s - told_s >= IGNORED_TOLD_EVERY_S:
            log.warning("ignored %s%s", what, f" ({count} more before it)" if count else "")
            self._ignored[reason] = (now_s, 0)
        else:
            self._ignored[reason] = (told_s, count + 1)

    def _on_receipt(self, receipt: Receipt) -> None:
        now_s = self._clock.monotonic_s()
        self._standing.receipted(now_s)
        begun = self._post.settle(receipt)
        before, self._rival = self._rival, rival.heard(self._rival, overtaken=begun, now_s=now_s)
        if self._rival.suspected and not before.suspected:
            self._rival_trouble = (
                f"another client seems to use the device id {self._settings.device} at the same broker, perhaps a copy "
                "of this device; give each device its own id with 'evenfleet device enrol'"
            )
            log.error(
                "%s (the collector knew a later incarnation %d times within %.0f minutes)",
                self._rival_trouble,
                len(self._rival.overtaken_s),
                rival.RIVAL_WITHIN_S / 60,
            )
        elif before.suspected and not self._rival.suspected:
            self._rival_trouble = None
        if begun and not self._rival.suspected:
            log.warning("the collector knows a later incarnation of this device; began %d", self._outbox.incarnation[0])

    def _identity(self) -> str:
        file = self._settings.broker.password_file
        return (
            f"device id {self._settings.device}, {f'token file {file}' if file else 'broker.password_file is not set'}"
        )

    # commands

    def _on_command(self, command: Command, event: Received) -> None:
        self._book, outcome = commands.take(self._book, command, self._clock.monotonic_s(), event.expires_in_s)
        if isinstance(outcome, Answer):
            self._post.reply(command, outcome, event)
            return
        # The last copy's way back.
        self._asked[command.correlation_id] = event
        if isinstance(outcome, Do):
            log.info("command %s: %s %s", command.correlation_id, command.command, command.variant or "")
            self._do(command)
        else:
            assert isinstance(outcome, Wait)

    def _do(self, command: Command) -> None:
        known = self._stations.variants
        if command.variant is not None and command.variant not in known:
            running = f"it runs {', '.join(known)}" if known else "it runs nothing"
            self._answer(
                command, Answer(status="refused", detail=f"this device does not run {command.variant}; {running}")
            )
        elif not known:
            self._answer(command, Answer(status="refused", detail="this device runs no release"))
        elif command.command == "measure":
            # What was taken until now is paid for; what the command takes is not: whoever gives it wants it now.
            self._pay(self._clock.monotonic_s())
            count = self._stations.measure(
                command.correlation_id,
                command.variant,
                sustained_s=command.sustained_s,
                offline_s=command.offline_s,
            )
            self._orders[command.correlation_id] = _Order(command, count)
        elif command.command == "layers":
            self._look(command)
        else:
            assert command.command == "restart-runner"
            count = self._stations.restart(command.variant)
            self._answer(command, Answer(status="done", detail=f"{count} started again"))

    def _look(self, command: Command) -> None:
        if command.variant is None:
            known = ", ".join(self._stations.variants)
            self._answer(command, Answer(status="refused", detail=f"layers needs a variant; this device runs {known}"))
            return
        count = self._stations.look(command.correlation_id, command.variant)
        self._orders[command.correlation_id] = _Order(command, count)

    def _answer(self, command: Command, answer: Answer) -> None:
        self._book = commands.answered(self._book, command.correlation_id, answer)
        self._post.reply(command, answer, self._asked.pop(command.correlation_id, None))

    def _on_ordered(self, order_id: str, *, seq: int | None, reason: str) -> None:
        order = self._orders.get(order_id)
        if order is None:
            return
        order.open -= 1
        if seq is not None:
            order.seqs.append(seq)
        elif reason not in order.reasons:
            order.reasons.append(reason)
        if order.open <= 0:
            del self._orders[order_id]
            self._taken = self._machine.taken(self._stations.pids)
            status: commands.Status = "done" if order.seqs else "failed"
            self._answer(
                order.command,
                Answer(status=status, seqs=tuple(order.seqs)[:64], detail="; ".join(order.reasons)),
            )

    def _end_look(self, order_id: str, answer: Answer) -> None:
        order = self._orders.pop(order_id, None)
        if order is not None:
            self._answer(order.command, answer)

    def _end_overdue_orders(self, now_s: float) -> None:
        for command in commands.overdue(self._book, now_s):
            self._stations.forget(command.correlation_id)
            order = self._orders.pop(command.correlation_id, None)
            self._taken = self._machine.taken(self._stations.pids)
            self._answer(
                command,
                Answer(
                    status="expired",
                    detail=f"not done within its ttl_s of {command.ttl_s:g}",
                    seqs=tuple(order.seqs)[:64] if order else (),
                ),
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
            return Offer(
                release, tuple(wanted.name for wanted in desired.variants if wanted.name in whole), desired.signatures
            )
        return Offer(release, tuple(whole)) if whole else None

    def _follow(self, desired: Desired) -> None:
        now_s = self._clock.monotonic_s()
        before, self._desired = self._desired, desired
        self._post.desired_revision = desired.revision
        if before and self._length_s(desired) < self._length_s(before) and self._window_due_s is not None:
            self._window_due_s = min(self._window_due_s, now_s + self._length_s(desired))
        self._stations.count_against(self._limits(self._stations.release))
        if before is None or before.release != desired.release:
            self._release_trouble = None
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
                self._start_fetch(action.offer)
            elif isinstance(action, rollout.StopFetch):
                self._fetcher.stop()
            elif isinstance(action, rollout.Switch):
                self._slots.switch()
            elif isinstance(action, rollout.StartRunners):
                self._start_stations(action.offer)
            elif isinstance(action, rollout.StopRunners):
                self._stations.close()
            else:
                log.info("%s: %s %s", action.event, action.release[:12], action.detail)
                self._post.tell(action.event, release=action.release, detail=action.detail)

    def _start_fetch(self, offer: Offer) -> None:
        assert self._desired is not None
        log.info("fetching release %s", offer.release[:12])
        order = FetchOrder(
            url=self._desired.artifacts_url,
            release=offer.release,
            variants=offer.variants,
            directory=str(self._slots.idle().absolute()),
            runtime=self._settings.runtime.name,
            python=self._settings.runtime.python,
            signatures=offer.signatures,
            trusted_keys=tuple(str(Path(file).absolute()) for file in self._settings.release.trusted_keys),
        )
        try:
            self._fetcher.start(order)
        except OSError as error:
            # No process or no memory is left; what there was of the offer stands.
            self._fetch_failed(FetchResult(ok=False, reason=f"cannot start the download: {error.strerror}"))

    def _poll_fetch(self) -> None:
        result = self._fetcher.result()
        if result is None:
            return
        if result.ok:
            self._release_trouble = None
            self._step(rollout.Fetched())
        else:
            self._fetch_failed(result)

    def _fetch_failed(self, result: FetchResult) -> None:
        log.warning("%s", result.reason)
        self._release_trouble = result.reason
        self._step(rollout.FetchFailed(result.reason, result.cause))

    def _start_stations(self, offer: Offer) -> None:
        limits = self._limits(offer.release)
        if self._stations.open(offer, limits):
            self._window_due_s = self._last_due_s = None
        else:
            self._step(rollout.Vanished())

    # measuring

    def _length_s(self, desired: Desired) -> float:
        """Return how long windows are: as desired, or longer where bytes cost."""
        network = self._settings.network
        return max(desired.window_length_s, network.metered_window_length_s if network.metered else 0.0)

    def _begin_window(self, now_s: float) -> bool:
        """Have every variant measured when a window is due and affordable, once all of the last one's are done."""
        if self._desired is None or not self._stations.variants or not self._stations.idle:
            return False
        if self._window_due_s is not None and now_s < self._window_due_s:
            return False
        length_s = self._length_s(self._desired)
        self._pay(now_s)
        due_s = now_s if self._window_due_s is None else self._window_due_s
        if self._allowance.free_s > now_s:
            self._window_due_s = first_after_s(due_s, length_s, self._allowance.free_s)
            self._put_off = True
            return False
        # In whole windows, by the grid, and only what was put off: who was suspended or is late has stretched nothing.
        stretched = 1.0
        if self._put_off and self._last_due_s is not None:
            stretched = max(1.0, round((due_s - self._last_due_s) / length_s))
        self._put_off = False
        self._last_due_s, self._window_due_s = due_s, next_window_s(due_s, length_s, now_s)
        self._round = _Round(
            now_s, length_s * stretched, self._overhead(now_s, stretched), self._link.network(), self._taken
        )
        if self._round.overhead:
            self._standing.took(self._round.overhead.cpu_ratio, self._allowance.ratio, now_s)
        return self._stations.measure_all() > 0

    def _pay(self, now_s: float) -> None:
        """Pay for what the agent took since the last look."""
        before, self._taken = self._taken, self._machine.taken(self._stations.pids)
        self._allowance = self._allowance.at(now_s).less(self._taken.cpu_s - before.cpu_s)

    def _overhead(self, now_s: float, stretched_ratio: float) -> Overhead | None:
        """Return what the agent took since the round before began, None where no time has passed."""
        before, passed_s = self._round.taken, now_s - self._round.began_s
        if passed_s <= 0.0:
            return None
        return Overhead(
            length_s=passed_s,
            supervisor_cpu_ratio=max(0.0, self._taken.supervisor_cpu_s - before.supervisor_cpu_s) / passed_s,
            cpu_ratio=max(0.0, self._taken.cpu_s - before.cpu_s) / passed_s,
            budget_ratio=self._allowance.ratio,
            stretched_ratio=stretched_ratio,
            supervisor_rss_bytes=self._taken.supervisor_rss_bytes,
            outbox_bytes=self._outbox.size_bytes,
        )

    def _tell_trouble(self, now_s: float) -> None:
        """Say what someone must act on: at once when it begins or ends, once a minute when it is another."""
        trouble = (
            "; ".join(
                filter(
                    None, (self._rival_trouble, self._release_trouble, self._intake.trouble() if self._intake else None)
                )
            )
            or None
        )
        told, told_s = self._trouble_told
        if trouble == told or (trouble and told and now_s < told_s + TROUBLE_EVERY_S):
            return
        self._trouble_told = (trouble, now_s)
        self._standing.troubled(trouble)

    def _read_probes(self, now_s: float) -> None:
        """Read what applications' probes have noted, and keep a window of it as often as of the models."""
        if self._intake is None or now_s < self._poll_due_s:
            return
        self._poll_due_s = now_s + self._settings.probe.poll_s
        passed_s = now_s - self._apps_since_s
        if passed_s < (self._length_s(self._desired) if self._desired else DEFAULT_APP_WINDOW_S):
            self._intake.poll()
            return
        self._apps_since_s = now_s
        for body in self._intake.close_windows(
            length_s=passed_s, uptime_s=self._clock.uptime_s(), wall_s=self._clock.wall_s()
        ):
            self._post.app(body)

    def _work(self, now_s: float) -> None:
        for finding in self._stations.work(now_s):
            if isinstance(finding, Taken):
                run = replace(finding.run, transport=self._transport, metered=self._settings.network.metered)
                seq = self._post.window(run, self._fields(finding))
                if finding.order:
                    self._on_ordered(finding.order, seq=seq, reason="the outbox does not take the window")
            elif isinstance(finding, VariantRefused):
                self._post.tell(
                    "variant-refused",
                    release=self._stations.release,
                    variant=finding.variant,
                    detail=finding.reason,
                )
            elif isinstance(finding, RunnerFailed):
                self._post.tell(
                    "runner-failed", release=self._stations.release, variant=finding.variant, detail=finding.reason
                )
            elif isinstance(finding, NotMeasured):
                self._on_ordered(finding.order, seq=None, reason=finding.reason)
            elif isinstance(finding, Looked):
                self._end_look(finding.order, Answer(status="done", result=finding.result))
            elif isinstance(finding, NotShown):
                self._end_look(finding.order, Answer(status="refused", detail=finding.reason))
            else:
                assert isinstance(finding, Vanished)
                self._step(rollout.Vanished())

    def _fields(self, taken: Taken) -> dict[str, Any]:
        """Return what `messages.Window` says of a measurement."""
        assert self._desired is not None
        # Once is enough of what is the device's and not the variant's.
        overhead, self._round.overhead = self._round.overhead, None
        network, self._round.network = self._round.network, None
        return {
            "release": self._stations.release,
            "variant": taken.variant.name,
            "artifact": taken.variant.artifact.sha256,
            # One that was asked for beside the schedule stands for no more than any.
            "length_s": self._round.length_s if taken.order is None else self._length_s(self._desired),
            "runner_start": taken.starts,
            "overhead": overhead,
            "network": network,
            **taken.body.fields(),
        }

    # time

    def _look_at_clock(self) -> None:
        """Say when the wall clock was set: windows before and after it lie elsewhere in time by it."""
        # Against a clock that goes on while the device is suspended, or every sleep would be a jump.
        offset_s = self._clock.wall_s() - self._clock.uptime_s()
        moved_s, self._wall_offset_s = offset_s - self._wall_offset_s, offset_s
        if abs(moved_s) > CLOCK_JUMP_S:
            log.warning("the wall clock was set by %+.0f s", moved_s)
            self._post.tell("clock-jumped", detail=f"the wall clock was set by {moved_s:+.0f} s")

    def _next_due_s(self, now_s: float) -> float:
        due = [
            self._post.due_s(now_s),
            self._rollout.retry_s,
            self._stations.due_s(),
            commands.next_due_s(self._book),
            self._window_due_s if self._stations.variants and self._stations.idle else None,
            self._poll_due_s if self._intake else None,
        ]
        return min([now_s + IDLE_S, *(at_s for at_s in due if at_s is not None)])


def run(supervisor: Supervisor, wake: int, stopping: Callable[[], bool], clock: Clock, manager: ServiceManager) -> None:
    """Turn until told to stop, sleeping in between until something happens or is due.

    Args:
        supervisor: Not started yet.
        wake: A descriptor that becomes readable when the link has events, or a signal came.
        stopping: Asked after every wake-up.
        clock: The supervisor's.
        manager: Is told that the loop turns.
    """
    supervisor.start()
    manager.ready(supervisor.status)
    said = ""
    faults = 0
    try:
        while not stopping():
            try:
                due_s = supervisor.turn()
                faults = 0
            except Exception:
                # A fault of ours, which none of the device's doing should be able to find. What waits is sent all the same.
                faults += 1
                if faults > MAX_FAULTS:
                    raise  # what is in memory may be wrong: a service manager starts us anew
                log.exception("a fault of the agent's own, %d in a row; it goes on", faults)
                with suppress(Exception):
                    supervisor.send()
                due_s = clock.monotonic_s() + min(FAULT_PAUSE_MAX_S, 2.0 ** (faults - 1))
            manager.alive()
            if supervisor.status != said:
                said = supervisor.status
                manager.status(said)
            wait_s = max(0.0, due_s - clock.monotonic_s())
            if manager.watchdog_s is not None:
                wait_s = min(wait_s, manager.watchdog_s / 3)
            with selectors.DefaultSelector() as selector:
                for descriptor in {wake, *supervisor.waitables()}:
                    selector.register(descriptor, selectors.EVENT_READ)
                if any(key.fd == wake for key, _ in selector.select(wait_s)):
                    os.read(wake, 4096)
    finally:
        manager.stopping()
        supervisor.stop()


def _offer(desired: Desired) -> Offer:
    assert desired.release is not None
    # A name that comes twice would be two runners for one variant.
    return Offer(desired.release, tuple(dict.fromkeys(wanted.name for wanted in desired.variants)), desired.signatures)


def _read_desired(path: Path) -> Desired | None:
    try:
        found: Desired = messages.decode("desired", path.read_bytes())
    except (OSError, MessageError):
        return None
    return found
