"""The agent's loop with a fake clock, broker, download and runners; rules, outbox, slots and disk are real."""

from __future__ import annotations

import logging
import math
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evenfleet_agent import standing as standings
from evenfleet_agent.config import AgentSettings, MeasureSettings, RuntimeSettings
from evenfleet_agent.outbox import Outbox, open_outbox
from evenfleet_agent.post import STORE_RETRY_S
from evenfleet_agent.rival import RIVAL_WITHIN_S
from evenfleet_agent.runner.protocol import Failed, Layers, Measure, NotLayered, RunnerSpec
from evenfleet_agent.slots import Slots
from evenfleet_agent.standing import StandingFile
from evenfleet_agent.stations import RESTART_MAX_S
from evenfleet_agent.supervisor import Supervisor
from evenfleet_agent.supervisor import run as supervise
from evenfleet_agent.systemd import ServiceManager
from evenfleet_shared import layers, messages, topics
from evenfleet_shared.errors import RunnerError
from evenfleet_shared.messages import (
    Command,
    Desired,
    DesiredVariant,
    Event,
    IncarnationReceipt,
    Limit,
    Receipt,
    ReleaseSignature,
    Reply,
    State,
    Window,
)
from fakes.agent_links import FakeLink, Published, again
from fakes.disks import FoldersThatCannotBeSynced, SyncedDisk
from fakes.fetchers import FakeFetcher
from fakes.machines import FakeMachine
from fakes.runners import Bench, OnMeasure, loaded, measured, refused, steady
from fakes.stores import small_manifest

DEVICE = "press-01"
LIMIT = Limit(limit_ms=1.1, revision=1)
LENGTH_S = 10.0


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def uptime_s(self) -> float:
        return self.monotonic_s()

    def wall_s(self) -> float:
        return 1.7e9 + self.now_s


@dataclass
class Board:
    """One device, which can be switched off and on."""

    directory: Path
    clock: FakeClock = field(default_factory=FakeClock)
    boots: int = 0
    max_bytes: int = 1 << 20
    fetcher: FakeFetcher = field(default_factory=FakeFetcher)
    bench: Bench = field(default_factory=Bench)
    machine: FakeMachine = field(default_factory=FakeMachine)

    def __post_init__(self) -> None:
        self.release = self.fetcher.add(*small_manifest("float32", "int8"))
        self.other = self.fetcher.add(*small_manifest("float32", "int8", model="another"))
        self.boot()

    def boot(self) -> None:
        """Start the process anew; what it held in memory is gone."""
        settings = AgentSettings(
            device=DEVICE,
            device_class="bench-x86",
            runtime=RuntimeSettings(threads=2),
            measure=MeasureSettings(samples=50),
        )
        self.link = FakeLink(DEVICE)
        self.fetcher.stop()
        self.bench = Bench(self.bench.on_measure, self.bench.on_load)
        words = iter(f"{number:08x}" for number in range(100 * self.boots, 100 * self.boots + 100))
        self.outbox: Outbox = open_outbox(
            self.directory,
            boot=f"boot-{self.boots}",
            new_random=lambda: next(words),
            max_bytes=self.max_bytes,
            jitter=lambda: 1.0,
        )
        self.outbox._db.execute("PRAGMA synchronous=OFF")  # no power fails here
        self.supervisor = Supervisor(
            settings,
            state_dir=self.directory,
            outbox=self.outbox,
            standing=StandingFile(self.directory / standings.FILE_NAME, f"boot-{self.boots}"),
            link=self.link,
            slots=Slots(self.directory / "slots"),
            fetcher=self.fetcher,
            new_runner=self.bench.new_runner,
            clock=self.clock,
            machine=self.machine,
        )
        self.supervisor.start()

    def restart(self, *, reboot: bool = False) -> None:
        self.boots += reboot
        self.outbox.close()
        self.boot()

    def turn(self) -> float:
        """Let the loop turn until it would sleep; returns until when."""
        due_s = self.supervisor.turn()
        while any(runner.readable for runner in self.bench.runners):
            due_s = self.supervisor.turn()
        return due_s

    def windows(self, count: int) -> list[Window]:
        """Let so many windows pass and return what was published meanwhile."""
        for _ in range(count):
            self.clock.now_s += LENGTH_S
            self.turn()
        return self.sent(Window)

    def desired(self, revision: int = 1, **changes: Any) -> Desired:
        base = Desired(
            device=DEVICE,
            revision=revision,
            release=self.release,
            variants=(DesiredVariant(name="float32", limits=(LIMIT,)), DesiredVariant(name="int8")),
            artifacts_url="http://127.0.0.1:1/artifacts",
            window_length_s=LENGTH_S,
        )
        return replace(base, **changes)

    def told(self, desired: Desired | None = None) -> None:
        self.link.deliver(desired or self.desired())
        self.turn()

    def measures(self, desired: Desired | None = None) -> None:
        """Connect, install and load a release."""
        self.link.connect()
        self.told(desired)
        self.fetcher.finish()
        self.turn()

    def receipted(self, **part: Any) -> None:
        """Let the collector say that it has everything."""
        incarnation = self.outbox.incarnation
        whole = IncarnationReceipt(incarnation=incarnation, **({"contiguous": self.outbox.last_seq} | part))
        self.link.deliver(Receipt(device=DEVICE, last_counter=incarnation.counter, incarnations=(whole,)))
        self.turn()

    def receipted_blindly(self) -> None:
        """Let the collector say that it has nothing: what a receipt says where the outbox cannot be asked."""
        whole = IncarnationReceipt(incarnation=self.outbox.incarnation, contiguous=0)
        self.link.deliver(Receipt(device=DEVICE, last_counter=1, incarnations=(whole,)))
        self.turn()

    def sent(self, kind: type) -> list[Any]:
        """Return the messages of one type published since the last look at any."""
        return [one.message for one in self.link.take() if isinstance(one.message, kind)]

    def events(self) -> list[tuple[str, str | None]]:
        return [(event.event, event.variant) for event in self.sent(Event)]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path)
    yield board
    board.outbox.close()


def kinds(published: list[Published]) -> list[str]:
    return [one.kind for one in published]


# the session


def test_a_session_begins_with_a_birth_that_is_retained(board: Board) -> None:
    assert board.link.opened
    session = board.link.connect()
    board.turn()

    (birth,) = board.link.take()
    assert (birth.kind, birth.retain) == ("state", True)
    state = birth.message
    assert (state.status, state.session, state.device_class, state.formats) == (
        "birth",
        session,
        "bench-x86",
        ("tflite",),
    )
    assert (state.seq, state.floor, state.desired_revision) == (0, 1, 0)


def test_why_there_is_no_session_is_said_once(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        board.link.disconnect("no broker answers")
        board.turn()
    for _ in range(3):
        board.link.disconnect("bad password", refused=True)
        board.turn()
    board.link.connect()
    board.link.disconnect("bad password")
    board.turn()

    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.partition(";")[0] for line in said] == [
        "no broker session: no broker answers",
        "no broker session: bad password (device id press-01, broker.password_file is not set)",
        "connected to the broker",
        "no broker session: bad password",
    ]


def test_a_session_that_returns_is_said_as_loudly_as_its_loss(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    board.link.connect()
    board.link.disconnect("gone")
    board.link.connect()
    board.turn()

    said = [record.levelname for record in caplog.records if record.message == "connected to the broker"]
    assert said == ["INFO", "WARNING"]


def test_how_the_session_stands_is_left_on_disk(board: Board) -> None:
    def left() -> tuple[bool, float, str | None, float | None]:
        found = standings.read(board.directory / standings.FILE_NAME)
        assert found is not None
        return found.connected, found.since_s, found.reason, found.receipt_s

    assert left() == (False, 1000.0, "no broker has answered yet", None)
    board.clock.now_s = 1010.0
    board.link.connect()
    board.turn()
    assert left() == (True, 1010.0, None, None)

    board.clock.now_s = 1020.0
    board.receipted()
    board.clock.now_s = 1030.0
    board.receipted()
    board.link.disconnect("bad password")
    board.turn()
    assert left() == (False, 1030.0, "bad password", 1020.0)

    board.supervisor.stop()
    assert left()[2] == "the agent was told to stop"
    board.boot()


def test_nothing_is_published_without_a_session(board: Board) -> None:
    board.measures()
    board.link.disconnect()
    board.turn()
    board.link.take()
    board.link.connected = True  # the client says so before it has told us of the session

    board.windows(3)

    assert board.link.take() == []
    assert len(board.outbox) > 0


def test_what_was_measured_without_a_session_goes_out_with_the_next_one_in_order(board: Board) -> None:
    board.measures()
    board.link.disconnect()
    board.windows(3)
    board.receipted()
    waiting = board.outbox.last_seq - board.outbox.floor() + 1
    board.windows(2)

    board.link.connect()
    board.turn()

    published = board.link.take()
    assert kinds(published)[0] == "state"
    seqs = [one.message.seq for one in published[1:]]
    assert seqs == sorted(seqs)
    assert len(seqs) > waiting


def test_a_reconnection_sends_everything_without_a_receipt_again(board: Board) -> None:
    board.measures()
    before = {one.message.seq for one in board.link.take() if one.kind != "state"}
    board.turn()
    assert board.link.take() == []

    board.link.disconnect()
    board.link.connect()
    board.turn()

    assert {one.message.seq for one in board.link.take() if one.kind != "state"} == before


def test_a_session_that_dies_while_sending_loses_nothing(board: Board) -> None:
    board.measures()
    board.link.disconnect()
    board.windows(5)
    board.link.connect()
    board.link.takes = 3
    board.turn()
    assert len(board.link.take()) == 3

    board.link.disconnect()
    board.link.connect()
    board.turn()
    assert {one.message.seq for one in board.link.take() if one.kind != "state"} == set(
        range(1, board.outbox.last_seq + 1)
    )


def test_a_will_speaks_of_its_session_and_of_no_numbers(board: Board) -> None:
    board.measures()
    will = messages.decode("state", board.supervisor.will("abcdef01"))

    assert isinstance(will, State)
    assert (will.status, will.session, will.seq, will.floor) == ("lost", "abcdef01", 0, 1)


def test_stopping_says_gone_and_ends_the_runners(board: Board) -> None:
    board.measures()
    assert len(board.bench.running) == 2
    last_seq = board.outbox.last_seq

    board.supervisor.stop()

    assert board.bench.running == []
    assert board.link.farewell is not None
    gone = board.link.farewell.message
    assert (gone.status, gone.seq) == ("gone", last_seq)
    board.boot()


def test_stopping_before_the_first_session_is_no_trouble(board: Board) -> None:
    board.supervisor.stop()

    assert board.link.farewell is not None
    assert board.link.farewell.message.status == "gone"
    assert board.link.published == []
    board.boot()


# what comes down


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (topics.build(DEVICE, "desired"), b"\xff\x00"),
        (topics.build(DEVICE, "desired"), b"{}"),
        (topics.build(DEVICE, "receipt"), b'{"schema": "receipt/1"}'),
        (topics.build(DEVICE, "receipt"), b"[" * 300_000),
        (topics.build(DEVICE, "command"), b'{"schema": "command/1"}'),
        (topics.build(DEVICE, "window"), b"{}"),
        ("elsewhere", b"{}"),
    ],
)
def test_hostile_bytes_are_ignored_with_a_warning(
    board: Board, caplog: pytest.LogCaptureFixture, topic: str, payload: bytes
) -> None:
    board.link.connect()
    board.link.deliver_on(topic, payload)
    board.turn()

    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith("ignored a message")
    assert "\n" not in warning
    board.measures()
    board.link.take()
    assert len(board.windows(1)) == 2


def test_what_is_meant_for_another_device_is_ignored(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.link.connect()
    board.link.deliver_bytes("desired", messages.encode(board.desired(device="press-02")))
    board.turn()

    assert "for press-02" in caplog.text
    assert not board.fetcher.busy


def test_a_retained_message_that_was_cleared_is_nothing(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.link.connect()
    board.link.deliver_bytes("desired", b"")
    board.turn()

    assert caplog.text == ""


def test_a_revision_that_is_not_higher_is_ignored(board: Board) -> None:
    board.measures(board.desired(revision=5))
    for revision in (4, 5):
        board.told(board.desired(revision=revision, release=board.other))
        assert not board.fetcher.busy

    board.told(board.desired(revision=6, release=board.other))
    assert board.fetcher.busy


def test_a_birth_says_which_revision_the_device_has_also_after_a_restart(board: Board) -> None:
    board.measures(board.desired(revision=5))
    board.restart()
    board.link.connect()
    board.turn()

    (state,) = board.sent(State)
    assert state.desired_revision == 5


def test_a_receipt_empties_the_outbox(board: Board) -> None:
    board.measures()
    board.windows(2)
    board.receipted()

    assert len(board.outbox) == 0


def test_a_collector_that_knows_a_later_life_makes_the_device_begin_one_above_it(board: Board) -> None:
    board.measures()
    board.link.take()
    board.link.deliver(Receipt(device=DEVICE, last_counter=9))
    board.turn()

    assert board.outbox.incarnation.counter == 10
    (birth,) = board.sent(State)
    assert birth.incarnation.counter == 10
    board.windows(1)
    contexts = [one for one in board.outbox.due(1e9, 100) if one.kind == "context"]
    assert [entry.key[0] for entry in contexts] == [1, 10]


def test_a_device_that_is_overtaken_again_and_again_says_once_that_its_id_is_used_twice(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    def overtaken(later: int) -> list[str]:
        caplog.clear()
        board.clock.now_s += 60.0
        board.link.connect()
        board.link.deliver(Receipt(device=DEVICE, last_counter=board.outbox.incarnation.counter + later))
        board.turn()
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    def trouble() -> str | None:
        found = standings.read(board.directory / standings.FILE_NAME)
        assert found is not None
        return found.trouble

    assert [overtaken(1), overtaken(1), trouble()] == [[], [], None]
    (said,) = overtaken(1)
    assert "another client seems to use the device id press-01" in said
    assert "evenfleet device enrol" in said
    assert overtaken(1) == []
    assert "press-01" in (trouble() or "")

    board.clock.now_s += RIVAL_WITHIN_S
    assert (overtaken(0), trouble()) == ([], None)


def test_a_device_that_is_overtaken_now_and_then_says_nothing_of_a_second_one(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        board.clock.now_s += RIVAL_WITHIN_S / 2
        board.link.deliver(Receipt(device=DEVICE, last_counter=board.outbox.incarnation.counter + 1))
        board.turn()

    assert all(record.levelno < logging.ERROR for record in caplog.records)


# measuring


def test_a_window_is_on_disk_before_it_is_published(board: Board) -> None:
    board.measures()
    held: list[bool] = []
    publish = board.link.publish

    def watch(kind: str, payload: bytes, *, retain: bool = False) -> bool:
        if kind == "window":
            seq = messages.decode(kind, payload).seq
            held.append(seq in [entry.key[2] for entry in board.outbox.due(1e12, 1000)])
        return publish(kind, payload, retain=retain)

    board.link.publish = watch  # type: ignore[method-assign]
    board.windows(2)
    assert held == [True] * 4


def test_every_variant_is_measured_once_a_window_one_after_another(board: Board) -> None:
    board.measures()
    board.link.take()
    windows = board.windows(3)

    assert [window.variant for window in windows] == ["float32", "int8"] * 3
    assert [window.ended_uptime_s for window in windows] == [1010.0, 1010.0, 1020.0, 1020.0, 1030.0, 1030.0]
    first = windows[0]
    assert (first.release, first.length_s, first.runner_start) == (board.release, LENGTH_S, 1)
    assert first.latency is not None
    assert first.latency.n == 50
    assert first.accuracy is not None


def test_only_one_thing_is_measured_at_a_time(board: Board) -> None:
    board.link.connect()
    board.told()
    board.bench.held = True
    board.fetcher.finish()
    for _ in range(5):
        board.clock.now_s += LENGTH_S
        board.turn()
        assert len(board.bench.running) == 1  # the other one has not even begun to load

    board.bench.held = False
    board.turn()
    assert len(board.bench.running) == 2


def test_windows_that_were_slept_through_are_left_out(board: Board) -> None:
    board.measures()
    board.link.take()
    board.clock.now_s += 25 * LENGTH_S + 3.0
    board.turn()
    board.clock.now_s += LENGTH_S - 3.0
    board.turn()

    assert [window.variant for window in board.sent(Window)] == ["float32", "int8"] * 2


def test_samples_are_counted_against_the_limits_of_the_release_that_runs(board: Board) -> None:
    board.bench.on_measure = lambda spec, _: measured(spec, [1.0] * 30 + [1.2] * 20)
    board.measures()
    board.link.take()
    float32, int8 = board.windows(1)

    (count,) = float32.exceedances
    assert (count.limit_ms, count.limit_revision, count.exceed, count.n) == (1.1, 1, 20, 50)
    assert int8.exceedances == ()


def test_a_changed_limit_counts_from_the_next_window_without_a_restart_of_the_runners(board: Board) -> None:
    board.measures()
    tighter = (DesiredVariant(name="float32", limits=(Limit(limit_ms=0.5, revision=2),)), DesiredVariant(name="int8"))
    board.told(again(board.desired(), variants=tighter))
    board.link.take()

    float32, _ = board.windows(1)

    assert [(one.limit_revision, one.exceed) for one in float32.exceedances] == [(2, 50)]
    assert len(board.bench.runners) == 2
    assert not board.fetcher.busy


def test_limits_of_the_next_release_are_not_counted_against_by_the_one_that_still_runs(board: Board) -> None:
    """Both may be revision 1 of their baselines: the counts would be taken for those of the other limit."""
    board.measures()
    next_limits = (DesiredVariant(name="float32", limits=(Limit(limit_ms=0.5, revision=1),)),)
    board.told(board.desired(revision=2, release=board.other, variants=next_limits))
    board.link.take()

    float32, _ = board.windows(1)
    assert (float32.release, float32.exceedances) == (board.release, ())

    board.fetcher.finish()
    board.turn()
    board.link.take()
    (float32,) = board.windows(1)
    assert (float32.release, float32.exceedances[0].limit_ms) == (board.other, 0.5)


def test_a_shorter_window_begins_at_once_and_not_after_the_long_one(board: Board) -> None:
    board.measures(board.desired(window_length_s=86_400.0))
    board.link.take()
    board.told(board.desired(revision=2))

    assert len(board.windows(1)) == 2


def test_a_run_context_goes_before_the_first_window_and_once(board: Board) -> None:
    board.measures()
    board.windows(2)
    board.link.disconnect()
    board.link.connect()
    board.turn()
    entries = [one for one in board.link.take() if one.kind in ("context", "window")]

    assert kinds(entries)[:2] == ["context", "window"]
    assert kinds(entries).count("context") == 1
    told = entries[0].message
    assert {one.message.context for one in entries[1:]} == {told.digest}
    assert (told.run.threads, told.run.device_class) == (2, "bench-x86")


def test_a_run_context_that_gave_way_offline_is_told_again(board: Board) -> None:
    """Without it every later window would be undetermined for as long as the process lives."""
    board.measures()
    board.link.disconnect()
    board.outbox._max_bytes = 10  # contexts give way last
    board.windows(3)
    assert "context" not in [entry.kind for entry in board.outbox.due(1e9, 10_000)]

    board.outbox._max_bytes = 1 << 20
    board.link.connect()
    board.turn()
    board.windows(1)

    assert "context" in [entry.kind for entry in board.outbox.due(1e9, 10_000)]


# runners that fail


def test_a_variant_that_is_refused_is_told_once_and_the_others_go_on(board: Board) -> None:
    board.bench.on_load = lambda spec: refused() if "int8" in spec.artifact else loaded(spec)
    board.measures()

    assert board.events() == [("release-installed", None), ("variant-refused", "int8")]
    assert [window.variant for window in board.windows(5)] == ["float32"] * 5
    assert [spec.artifact.rpartition("/")[2] for spec in board.bench.running] == ["float32.tflite"]


def test_a_runner_that_dies_is_told_and_started_again_and_the_others_go_on(board: Board) -> None:
    board.measures()
    board.link.take()

    def dies(spec: RunnerSpec, before: int) -> Any:
        return RunnerError("killed by signal 9") if "int8" in spec.artifact else measured(spec, [1.0])

    board.bench.on_measure = dies
    board.clock.now_s += LENGTH_S
    board.turn()
    published = [one.message for one in board.link.take()]
    assert [type(one).__name__ for one in published] == ["Window", "Event"]
    assert (published[1].event, published[1].variant, published[1].detail) == (
        "runner-failed",
        "int8",
        "killed by signal 9",
    )

    board.bench.on_measure = steady()
    windows = board.windows(2)
    assert [(window.variant, window.runner_start) for window in windows] == [
        ("float32", 1),
        ("int8", 2),
        ("float32", 1),
        ("int8", 2),
    ]


def test_the_pause_before_a_runner_is_started_again_doubles_to_five_minutes(board: Board) -> None:
    board.bench.on_load = lambda spec: RunnerError("no memory") if "int8" in spec.artifact else loaded(spec)
    board.measures()
    # By number, for what has no receipt is sent again.
    failed_s: dict[int, float] = {}
    while len(failed_s) < 13:
        for told in board.sent(Event):
            if told.event == "runner-failed":
                failed_s.setdefault(told.seq, board.clock.now_s)
        board.clock.now_s += 0.5
        board.turn()

    pauses = [after - before for before, after in pairwise(failed_s.values())]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, RESTART_MAX_S, RESTART_MAX_S, RESTART_MAX_S]


def test_a_runner_that_measures_again_is_forgiven(board: Board) -> None:
    board.measures()
    for _ in range(3):
        board.bench.on_measure = lambda *_: Failed(reason="out of memory")
        board.windows(1)
        board.bench.on_measure = steady()
        board.windows(3)
    board.link.take()
    board.bench.on_measure = lambda *_: Failed(reason="out of memory")
    board.windows(1)

    due_s = board.turn()
    assert due_s == board.clock.now_s + 1.0


@pytest.mark.parametrize(
    "nonsense",
    [
        {"samples_ms": b""},
        {"samples_ms": b"123"},
        {"samples_ms": b"\xff" * 8},
        {"samples_ms": b"\x00\x00\x00\x00\x00\x00\xf0\xbf"},
        {"samples_ms": array("d", [1e308, 1e308]).tobytes()},
        {"init_ms": math.nan},
        {"first_ms": math.inf},
        {"left_out_ms": -1.0},
    ],
)
def test_a_runner_that_answers_nonsense_is_a_runner_that_failed(board: Board, nonsense: dict[str, Any]) -> None:
    board.measures()
    board.link.take()

    def answer(spec: RunnerSpec, before: int) -> Any:
        honest = measured(spec, [1.0])
        return type(honest)(**{name: getattr(honest, name) for name in honest.__struct_fields__} | nonsense)

    board.bench.on_measure = answer
    board.clock.now_s += LENGTH_S
    board.turn()

    assert board.events() == [("runner-failed", "float32"), ("runner-failed", "int8")]
    board.bench.on_measure = steady()
    assert len(board.windows(2)) >= 2


def test_a_variant_that_is_refused_when_it_is_measured_is_told_once_too(board: Board) -> None:
    board.measures()
    board.link.take()
    board.bench.on_measure = lambda spec, _: refused() if "int8" in spec.artifact else measured(spec, [1.0] * 20)
    told: set[int] = set()
    for _ in range(5):
        board.clock.now_s += LENGTH_S
        board.turn()
        told |= {event.seq for event in board.sent(Event)}

    assert len(told) == 1
    assert [spec.artifact.rpartition("/")[2] for spec in board.bench.running] == ["float32.tflite"]


def test_a_reason_that_is_no_text_is_told_as_well_as_it_can_be(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """A directory whose name is not UTF-8, in an error of the system."""
    caplog.set_level(logging.CRITICAL)  # the test's own report could not hold it
    board.bench.on_load = lambda _: RunnerError("cannot read /var/\udcff/model")
    board.measures()

    details = [event.detail for event in board.sent(Event) if event.event == "runner-failed"]
    assert details == ["cannot read /var/?/model"] * 2


def test_a_name_that_is_wanted_twice_is_one_runner(board: Board) -> None:
    board.measures(board.desired(variants=(DesiredVariant(name="int8"), DesiredVariant(name="int8"))))

    assert len(board.bench.running) == 1
    board.told(board.desired(revision=2, release=None, variants=()))
    assert board.bench.running == []


@pytest.mark.parametrize(
    "gone",
    ["slots", "slots/current", "slots/a/artifacts/int8.tflite", "slots/a/golden", "slots/a/golden/labels.npy"],
)
def test_a_release_that_has_gone_from_the_disk_is_fetched_again_when_a_runner_needs_it(board: Board, gone: str) -> None:
    """Refused for a file that is missing, a variant would stay so until the next release."""
    board.measures()
    path = board.directory / gone
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}

    board.bench.on_measure = lambda *_: RunnerError("killed by signal 9")
    board.windows(1)
    board.bench.on_measure = steady()
    board.clock.now_s += 1.0
    board.turn()
    assert (board.fetcher.busy, board.bench.running) == (True, [])

    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}


# releases


def test_a_release_is_fetched_installed_told_and_run(board: Board) -> None:
    board.link.connect()
    board.told()
    assert board.fetcher.started == [(board.release, ("float32", "int8"))]
    assert board.bench.running == []

    board.fetcher.finish()
    board.turn()

    assert board.events() == [("release-installed", None)]
    assert len(board.bench.running) == 2


def test_the_running_release_goes_on_during_a_download_and_its_runners_end_at_the_switch(board: Board) -> None:
    board.measures()
    board.told(board.desired(revision=2, release=board.other))
    board.link.take()
    assert {window.release for window in board.windows(2)} == {board.release}

    board.fetcher.finish()
    board.turn()

    assert len(board.bench.running) == 2
    assert len(board.bench.runners) == 4
    board.link.take()
    assert {window.release for window in board.windows(2)} == {board.other}


def test_a_release_that_cannot_be_had_is_tried_again_later(board: Board) -> None:
    board.link.connect()
    board.told()
    board.fetcher.fail("no route")
    due_s = board.turn()
    assert due_s == board.clock.now_s + 1.0

    board.clock.now_s = due_s
    board.turn()
    assert len(board.fetcher.started) == 2


def test_a_download_for_which_there_is_no_process_left_is_tried_again_later(board: Board) -> None:
    board.link.connect()
    board.fetcher.start_error = BlockingIOError(11, "Resource temporarily unavailable")
    board.told()
    due_s = board.turn()
    assert due_s == board.clock.now_s + 1.0
    assert board.fetcher.started == []

    board.clock.now_s = due_s
    board.turn()
    board.fetcher.start_error = None
    board.clock.now_s += 2.0
    board.turn()
    board.fetcher.finish()
    board.turn()
    assert ("release-installed", None) in board.events()


def test_a_release_that_cannot_be_used_is_told_and_left_alone(board: Board) -> None:
    board.measures()
    board.link.take()
    board.told(board.desired(revision=2, release=board.other))
    board.fetcher.fail("no manifest", "release")
    board.turn()
    board.told(board.desired(revision=3, release=board.other))

    (event,) = board.sent(Event)
    assert (event.event, event.release, event.detail) == ("release-refused", board.other, "no manifest")
    assert not board.fetcher.busy
    assert {window.release for window in board.windows(2)} == {board.release}


def test_a_login_page_in_the_place_of_a_release_is_waited_out(board: Board) -> None:
    board.link.connect()
    board.told()
    for _ in range(4):
        board.fetcher.fail("another digest", "content")
        for _ in range(20):
            board.clock.now_s = board.turn()

    board.fetcher.finish()
    board.turn()
    assert ("release-installed", None) in board.events()


def test_a_withdrawn_release_stops_the_runners(board: Board) -> None:
    board.measures()
    board.told(board.desired(revision=2, release=None, variants=()))
    board.link.take()

    assert board.bench.running == []
    assert board.windows(3) == []


def test_what_is_desired_outlives_a_power_cut(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SyncedDisk(monkeypatch)
    board.link.connect()
    board.told()

    assert disk.outlives_a_power_cut(board.directory / "desired.json")


def test_a_restart_without_a_network_goes_on_measuring(board: Board) -> None:
    board.measures()
    board.windows(1)
    board.restart(reboot=True)

    board.windows(2)

    assert len(board.fetcher.started) == 1
    window = next(entry for entry in board.outbox.due(1e9, 100) if entry.key[0] == 2 and entry.kind == "backfill")
    assert messages.decode("backfill", window.payload).exceedances[0].limit_ms == LIMIT.limit_ms


def test_a_power_cut_during_an_update_lets_the_old_release_go_on_until_the_new_one_is_here(board: Board) -> None:
    board.measures()
    board.told(board.desired(revision=2, release=board.other))
    board.restart(reboot=True)
    board.link.connect()
    board.turn()
    board.link.take()

    windows = board.windows(2)
    assert {window.release for window in windows} == {board.release}
    assert all(window.exceedances == () for window in windows)

    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.release for window in board.windows(1)} == {board.other}


def test_a_variant_added_before_a_power_cut_is_still_fetched_after_it(board: Board) -> None:
    """The slot holds a release of the right name, but not all of it that is wanted."""
    board.measures(board.desired(variants=(DesiredVariant(name="float32"),)))
    board.told(board.desired(revision=2))
    board.restart()
    board.link.connect()
    board.turn()

    assert board.fetcher.busy
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"float32"}
    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}


def test_a_wish_for_a_variant_that_the_release_lacks_stops_no_start(board: Board) -> None:
    board.measures()
    board.told(board.desired(revision=2, variants=(DesiredVariant(name="float32"), DesiredVariant(name="int4"))))
    board.restart()
    board.link.connect()
    board.turn()

    assert board.fetcher.started[-1] == (board.release, ("float32", "int4"))
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"float32"}


@pytest.mark.parametrize("left", [b"", b"{", b"\xff"])
def test_a_damaged_memory_of_what_is_desired_waits_for_the_collector(board: Board, left: bytes) -> None:
    board.measures()
    (board.directory / "desired.json").write_bytes(left)
    board.restart()
    board.link.connect()
    board.turn()
    assert board.bench.running == []

    board.told()
    board.fetcher.finish()
    board.turn()
    assert len(board.bench.running) == 2


def test_a_slot_that_was_emptied_is_filled_again(board: Board) -> None:
    board.measures()
    for slot in ("a", "b"):
        shutil.rmtree(board.directory / "slots" / slot)
    board.restart()
    board.link.connect()
    board.turn()

    assert board.fetcher.busy


def test_a_release_whose_golden_set_has_gone_over_a_restart_is_fetched_again(board: Board) -> None:
    board.measures()
    shutil.rmtree(board.directory / "slots" / "a" / "golden")
    board.restart()
    board.link.connect()
    board.turn()
    assert (board.fetcher.busy, board.bench.running) == (True, [])

    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}


def test_a_switch_that_fails_is_tried_again_and_the_old_release_goes_on(board: Board) -> None:
    board.measures()
    board.told(board.desired(revision=2, release=board.other))
    (board.directory / "slots" / "current.new").mkdir()
    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.release for window in board.windows(1)} == {board.release}

    (board.directory / "slots" / "current.new").rmdir()
    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.release for window in board.windows(1)} == {board.other}


def test_a_switch_that_may_not_outlive_a_power_cut_runs_the_new_release(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old release's variants have no place in the new one."""
    another = board.fetcher.add(*small_manifest("int4"))
    board.measures()
    board.told(board.desired(revision=2, release=another, variants=(DesiredVariant(name="int4"),)))
    FoldersThatCannotBeSynced(monkeypatch)
    board.fetcher.finish()
    board.turn()

    board.link.take()
    assert {(window.release, window.variant) for window in board.windows(1)} == {(another, "int4")}
    assert not board.fetcher.busy


def test_an_old_slot_that_holds_another_release_when_a_switch_fails_ends_nothing(board: Board) -> None:
    another = board.fetcher.add(*small_manifest("int4"))
    board.measures()
    board.told(board.desired(revision=2, release=another, variants=(DesiredVariant(name="int4"),)))
    board.fetcher.finish()
    (board.directory / "slots" / "current.new").mkdir()
    shutil.copytree(board.directory / "slots" / "b", board.directory / "slots" / "a", dirs_exist_ok=True)
    board.turn()
    assert board.bench.running == []

    (board.directory / "slots" / "current.new").rmdir()
    board.clock.now_s += 1.0
    board.turn()
    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"int4"}


def test_a_release_that_has_gone_before_it_could_be_started_is_fetched_again(board: Board) -> None:
    """Without a runner nothing else would notice."""
    board.link.connect()
    board.told()
    board.fetcher.finish()
    (board.directory / "slots" / "a" / "manifest.json").unlink()
    board.turn()
    assert (board.fetcher.busy, board.bench.running) == (True, [])

    board.fetcher.finish()
    board.turn()
    board.link.take()
    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}


# losses and disks


def test_what_gave_way_is_told_when_somebody_can_hear_it(board: Board) -> None:
    board.measures()
    board.receipted()
    first = board.outbox.last_seq + 1
    board.link.disconnect()
    board.outbox._max_bytes = 20_000
    board.windows(60)
    numbered = board.outbox.last_seq
    assert [entry.kind for entry in board.outbox.due(1e9, 1000)].count("event") == 0

    board.link.connect()
    board.turn()

    # One event for all of it, which may have taken the place of one more window: that is told next.
    event = next(one for one in board.sent(Event) if one.event == "loss")
    assert event.seq == numbered + 1
    assert event.losses[0].first_seq == first
    assert {loss.reason for loss in event.losses} == {"summarised"}
    board.receipted()
    board.turn()
    assert board.outbox.ledger() == []


def test_a_full_disk_is_survived_and_told_in_the_log(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.measures()
    board.windows(1)
    pages = board.outbox._db.execute("PRAGMA page_count").fetchone()[0]
    board.outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    board.windows(100)
    assert "not kept" in caplog.text
    last_seq = board.outbox.last_seq

    board.outbox._db.execute("PRAGMA max_page_count = 100000")
    board.link.take()
    windows = board.windows(1)
    assert [window.seq for window in windows] == [last_seq + 1, last_seq + 2]


def test_a_full_disk_is_told_once_and_so_is_its_end(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """The windows are alike in size: a smaller one would fit where a larger one did not."""
    board.bench.on_measure = steady(spread=0.0)
    board.measures(board.desired(variants=(DesiredVariant(name="float32"),)))
    before = board.outbox.last_seq
    pages = board.outbox._db.execute("PRAGMA page_count").fetchone()[0]
    board.outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    board.windows(50)
    (said,) = [record.message for record in caplog.records if "full" in record.message]
    assert "is not kept" in said
    kept = board.outbox.last_seq - before

    caplog.clear()
    board.outbox._db.execute("PRAGMA max_page_count = 100000")
    board.windows(2)
    (said,) = [record.message for record in caplog.records]
    assert said == f"the outbox can be written again; {50 - kept} messages were not kept"


@pytest.mark.parametrize("table", ["messages", "ledger", "life"])
def test_a_disk_that_cannot_be_read_ends_nothing_is_told_once_and_loses_nothing(
    board: Board, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    board.measures()
    board.windows(2)
    board.link.take()
    held = {entry.key for entry in board.outbox.due(1e9, 1000)}
    board.outbox._db.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
    board.link.disconnect()
    board.turn()
    for _ in range(20):
        board.link.connect()
        board.windows(1)
        board.receipted_blindly()
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert 1 <= len(said) == len(set(said)) <= 4

    board.outbox._db.execute(f"ALTER TABLE elsewhere RENAME TO {table}")
    board.clock.now_s += STORE_RETRY_S
    board.link.take()
    board.link.connect()
    board.turn()
    assert held <= {entry.key for entry in board.outbox.due(1e9, 1000)}
    assert [one.message.seq for one in board.link.take() if one.kind == "event"]


def test_a_disk_that_fails_is_not_asked_at_every_turn(board: Board) -> None:
    board.measures()
    board.outbox._db.execute("ALTER TABLE ledger RENAME TO elsewhere")
    board.turn()
    board.outbox._db.execute("ALTER TABLE elsewhere RENAME TO ledger")
    board.link.take()
    board.clock.now_s += LENGTH_S
    due_s = board.turn()
    assert (board.link.take(), due_s) == ([], board.clock.now_s + LENGTH_S)

    board.clock.now_s += STORE_RETRY_S - LENGTH_S
    board.turn()
    assert len(board.sent(Window)) >= 2


def test_stopping_on_a_disk_that_fails_says_gone_without_numbers(board: Board) -> None:
    board.measures()
    board.outbox._db.execute("DROP TABLE messages")

    board.supervisor.stop()

    assert board.link.farewell is not None
    gone = board.link.farewell.message
    assert (gone.status, gone.seq, gone.floor) == ("gone", 0, 1)
    assert board.bench.running == []


def test_what_the_disk_has_damaged_is_given_up_and_told_and_the_rest_is_sent(board: Board) -> None:
    board.measures()
    board.receipted()
    board.link.disconnect()
    board.windows(2)
    damaged = board.outbox.floor()
    for seq, left in ((damaged, b"\x00" * 100), (damaged + 1, b'{"schema": "win'), (damaged + 2, b"[1]")):
        board.outbox._db.execute("UPDATE messages SET payload = ? WHERE seq = ?", (left, seq))

    board.link.connect()
    board.turn()
    board.turn()

    sent = [one.message for one in board.link.take() if one.kind != "state"]
    assert min(message.seq for message in sent) == damaged + 3
    losses = [loss for message in sent if isinstance(message, Event) for loss in message.losses]
    assert [(loss.first_seq, loss.last_seq, loss.reason) for loss in losses] == [(damaged, damaged + 2, "damaged")]


def test_a_receipt_that_cannot_be_written_is_survived(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.measures()
    board.windows(1)
    board.outbox._db.execute("PRAGMA query_only = ON")
    board.receipted()
    assert "the next receipt says the same again" in caplog.text
    assert len(board.outbox) > 0

    board.outbox._db.execute("PRAGMA query_only = OFF")
    board.receipted()
    assert len(board.outbox) == 0


def test_a_directory_that_cannot_keep_what_is_desired_is_survived(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    (board.directory / "desired.json.new").mkdir()
    board.measures()

    assert "a restart waits for the collector" in caplog.text
    board.link.take()
    assert len(board.windows(1)) == 2


# commands


def command(board: Board, name: str = "measure", **changes: Any) -> None:
    base = Command(device=DEVICE, correlation_id="c-1", command="measure", variant="int8", ttl_s=60.0)
    board.link.deliver(replace(base, command=name, **changes))
    board.turn()


def dies_of(signal: str) -> OnMeasure:
    def measure(spec: RunnerSpec, before: int) -> RunnerError:
        return RunnerError(f"was killed by {signal}")

    return measure


def test_a_command_to_measure_is_answered_with_the_numbers_of_its_windows(board: Board) -> None:
    board.measures()
    board.link.take()
    command(board)

    published = [one.message for one in board.link.take()]
    (window,) = [one for one in published if isinstance(one, Window)]
    (reply,) = [one for one in published if isinstance(one, Reply)]
    assert window.variant == "int8"
    assert (reply.correlation_id, reply.command, reply.status, reply.seqs) == ("c-1", "measure", "done", (window.seq,))


def test_a_command_may_ask_for_sustained_load_and_throughput_too(board: Board) -> None:
    board.measures()
    command(board, sustained_s=120.0, offline_s=10.0)

    runner = next(runner for runner in board.bench.runners if runner.spec and "int8" in runner.spec.artifact)
    asked = [request for request in runner.requests if isinstance(request, Measure)]
    assert [(one.sustained_s, one.offline_s) for one in asked[-1:]] == [(120.0, 10.0)]
    board.windows(1)
    assert (runner.requests[-1].sustained_s, runner.requests[-1].offline_s) == (0.0, 0.0)


def test_a_command_without_a_variant_measures_all(board: Board) -> None:
    board.measures()
    board.link.take()
    command(board, variant=None)

    (reply,) = board.sent(Reply)
    assert (reply.status, len(reply.seqs)) == ("done", 2)


def test_a_copy_of_an_answered_command_gets_the_same_answer_and_measures_nothing(board: Board) -> None:
    board.measures()
    command(board)
    (first,) = board.sent(Reply)
    command(board, age_s=10.0)

    published = [one.message for one in board.link.take()]
    assert [type(one) for one in published] == [Reply]
    assert replace(published[0], seq=first.seq, floor=first.floor) == first


def test_an_answer_that_found_no_session_is_given_to_the_next_copy(board: Board) -> None:
    board.measures()
    board.bench.held = True
    command(board)
    board.link.disconnect()
    board.turn()
    board.bench.held = False
    board.turn()
    board.link.connect()
    assert board.sent(Reply) == []

    command(board, age_s=5.0)
    (reply,) = board.sent(Reply)
    assert reply.status == "done"


def test_a_command_that_was_not_done_in_its_time_is_answered_as_expired(board: Board) -> None:
    board.measures()
    board.windows(1)
    board.bench.held = True
    command(board, ttl_s=5.0)
    board.link.take()
    board.clock.now_s += 5.0
    board.turn()

    (reply,) = board.sent(Reply)
    assert (reply.status, reply.seqs) == ("expired", ())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"variant": "int4"}, "does not run int4; it runs float32, int8"),
        ({"name": "layers", "variant": None}, "layers needs a variant; this device runs float32, int8"),
        ({"age_s": 60.0}, "60 s old"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(board: Board, changes: dict[str, Any], why: str) -> None:
    board.measures()
    board.link.take()
    command(board, **changes)

    (reply,) = board.sent(Reply)
    assert reply.status in ("refused", "expired")
    assert why in reply.detail


def test_a_device_that_runs_nothing_says_so(board: Board) -> None:
    board.link.connect()
    command(board, variant=None)

    (reply,) = board.sent(Reply)
    assert (reply.status, reply.detail) == ("refused", "this device runs no release")


def test_a_runner_is_started_again_on_command_at_once(board: Board) -> None:
    board.measures()
    board.bench.on_measure = dies_of("SIGKILL")
    board.windows(1)
    assert board.bench.running == []
    board.bench.on_measure = steady()

    command(board, "restart-runner")

    (reply,) = board.sent(Reply)
    assert (reply.status, reply.detail) == ("done", "1 started again")
    assert ["int8" in spec.artifact for spec in board.bench.running] == [True]
    assert board.windows(1)[-1].runner_start == 2


def test_a_command_that_fails_on_the_device_says_with_what(board: Board) -> None:
    board.measures()
    board.bench.on_measure = dies_of("SIGSEGV")
    command(board)

    (reply,) = board.sent(Reply)
    assert (reply.status, reply.detail) == ("failed", "was killed by SIGSEGV")


def test_taking_the_release_away_answers_what_was_to_be_measured(board: Board) -> None:
    board.measures()
    board.bench.held = True
    command(board)
    board.told(board.desired(revision=2, release=None, variants=()))
    board.turn()

    (reply,) = board.sent(Reply)
    assert (reply.status, "taken away" in reply.detail) == ("failed", True)


def test_layers_are_answered_with_what_the_runner_found_and_nothing_is_kept(board: Board) -> None:
    board.measures()
    board.windows(1)
    before = board.outbox.last_seq
    command(board, "layers")

    (reply,) = board.sent(Reply)
    assert (reply.command, reply.status, reply.seqs, reply.detail) == ("layers", "done", (), "")
    found = layers.decode(reply.result)
    release = small_manifest("float32", "int8")[0]
    assert found.artifact == release.variant("int8").artifact.sha256
    assert (found.golden, found.variant, found.runtime) == (release.golden.digest, "int8", "litert")
    assert [layer.operator for layer in found.layers] == ["RELU"]
    assert board.outbox.last_seq == before

    # A copy gets the same, without another look; and the runner goes on.
    command(board, "layers", age_s=3.0)
    (again,) = board.sent(Reply)
    assert again.result == reply.result
    assert sum(isinstance(one, Layers) for runner in board.bench.runners for one in runner.requests) == 1
    assert [window.runner_start for window in board.windows(1)] == [1, 1]


def test_layers_that_a_runtime_does_not_show_are_refused_and_the_runner_goes_on(board: Board) -> None:
    board.measures()
    board.link.take()
    board.bench.on_look = lambda _: NotLayered(reason="runtime onnx does not show what its operators give")
    command(board, "layers")

    published = [one.message for one in board.link.take()]
    assert not [one for one in published if isinstance(one, Event)]
    (reply,) = [one for one in published if isinstance(one, Reply)]
    assert (reply.status, reply.result) == ("refused", None)
    assert "does not show what its operators give" in reply.detail
    assert [window.runner_start for window in board.windows(1)] == [1, 1]


def test_a_runner_that_dies_over_layers_is_one_that_failed_and_so_has_the_command(board: Board) -> None:
    board.measures()
    board.link.take()
    board.bench.on_look = lambda _: RunnerError("was killed by SIGSEGV")
    command(board, "layers")

    published = [one.message for one in board.link.take()]
    (reply,) = [one for one in published if isinstance(one, Reply)]
    assert (reply.status, reply.detail) == ("failed", "was killed by SIGSEGV")
    assert [(one.event, one.variant) for one in published if isinstance(one, Event)] == [("runner-failed", "int8")]


def test_a_measurement_in_answer_to_layers_is_a_runner_that_failed(board: Board) -> None:
    board.measures()
    board.link.take()
    board.bench.on_look = lambda spec: measured(spec, [1.0])
    command(board, "layers")

    (reply,) = board.sent(Reply)
    assert (reply.status, reply.detail) == ("failed", "answered Measured, which was not asked for")


def test_layers_that_come_too_late_are_expired(board: Board) -> None:
    board.measures()
    board.bench.held = True
    command(board, "layers", ttl_s=5.0)
    board.link.take()
    board.clock.now_s += 5.0
    board.turn()
    board.bench.held = False
    board.turn()

    (reply,) = board.sent(Reply)
    assert (reply.status, reply.result) == ("expired", None)


# what the agent takes


def test_windows_are_stretched_until_what_they_cost_is_within_the_share(board: Board) -> None:
    """Each round costs 30 s; with a tenth of a processor and windows of 10 s that is one in thirty."""
    board.measures()
    board.link.take()
    spent = board.supervisor._allowance.saved_s
    board.machine.cpu_s += spent  # what may be taken at the start

    def costly(spec: RunnerSpec, before: int) -> Any:
        board.machine.cpu_s += 15.0
        return measured(spec, [1.0])

    board.bench.on_measure = costly
    began_s, before_s = board.clock.now_s, board.machine.cpu_s
    sent = {window.seq: window for window in board.windows(100)}  # some twice: nothing is receipted
    windows = [sent[seq] for seq in sorted(sent)]

    took_s, passed_s = board.machine.cpu_s - before_s, board.clock.now_s - began_s
    assert took_s <= 0.1 * passed_s + 30.0
    assert took_s >= 0.1 * passed_s - 31.0
    assert {window.variant for window in windows} == {"float32", "int8"}
    overheads = [window.overhead for window in windows if window.overhead]
    assert overheads[-1].stretched_ratio == pytest.approx(30.0)
    assert overheads[-1].cpu_ratio == pytest.approx(0.1)
    assert overheads[-1].budget_ratio == pytest.approx(0.1)
    assert windows[-1].length_s == pytest.approx(300.0)


def test_an_agent_within_its_share_keeps_its_grid(board: Board) -> None:
    board.measures()
    windows = board.windows(5)

    ends = sorted({window.ended_uptime_s for window in windows})
    assert {b - a for a, b in pairwise(ends)} == {LENGTH_S}
    assert {window.length_s for window in windows} == {LENGTH_S}
    # Once in each round, not with every variant.
    assert [window.overhead is not None for window in windows[-4:]] == [True, False, True, False]


# the machine


def test_a_wall_clock_that_is_set_is_an_event_and_one_that_drifts_is_not(board: Board) -> None:
    board.measures()
    board.windows(1)
    board.clock.wall_s = lambda: 1.7e9 + board.clock.now_s + 20.0  # type: ignore[method-assign]
    board.windows(1)
    board.clock.wall_s = lambda: 50 * 365.25 * 86_400 + board.clock.now_s  # type: ignore[method-assign]
    board.clock.now_s += LENGTH_S
    board.turn()

    (event,) = [one for one in board.sent(Event) if one.event == "clock-jumped"]
    assert event.detail == "the wall clock was set by -122120020 s"
    assert board.windows(2)  # and measuring goes on as before


def test_a_runner_that_the_kernel_killed_for_memory_is_told_so(board: Board) -> None:
    board.measures()
    board.link.take()

    def killed(spec: RunnerSpec, before: int) -> Any:
        board.machine.ooms = (board.machine.ooms or 0) + 1
        return RunnerError("runner was killed by SIGKILL while measuring")

    board.bench.on_measure = killed
    board.clock.now_s += LENGTH_S
    board.turn()

    details = [one.detail for one in board.sent(Event)]
    assert details
    assert all("out-of-memory killer" in detail for detail in details)


def test_a_governor_that_changes_makes_another_context_without_a_restart(board: Board) -> None:
    board.measures()
    board.link.take()
    board.machine.governor = "powersave"
    board.clock.now_s += LENGTH_S
    board.turn()

    published = [one.message for one in board.link.take()]
    context = next(one for one in published if one.schema == "context/1")
    windows = [one for one in published if isinstance(one, Window)]
    assert context.run.governor == "powersave"
    assert {window.context for window in windows} == {context.digest}
    assert {window.comparability for window in windows} == {messages.comparability(context.run)}


def test_the_fetch_is_told_which_keys_are_trusted_and_what_the_release_is_signed_with(board: Board) -> None:
    signature = ReleaseSignature(key="a" * 64, signature="c2ln")
    board.link.connect()
    board.told(board.desired(signatures=(signature,)))

    (order,) = board.fetcher.orders
    assert (order.signatures, order.trusted_keys) == ((signature,), ())


def test_a_runner_that_leaks_is_ended_before_it_takes_the_devices_memory(board: Board) -> None:
    board.measures()
    board.windows(1)
    leaking = next(runner for runner in board.bench.runners if runner.spec and "int8" in runner.spec.artifact)
    assert leaking.pid is not None
    board.machine.resident[leaking.pid] = 40_000_000
    board.windows(1)
    board.machine.resident[leaking.pid] += 300_000_000
    board.clock.now_s += LENGTH_S
    board.turn()

    published = [one.message for one in board.link.take()]
    (event,) = [one for one in published if isinstance(one, Event)]
    assert (event.event, event.variant) == ("runner-failed", "int8")
    assert "leaks: it has grown by 300 MB" in event.detail
    # Its window is there all the same, and it is measured again after a pause.
    assert [one.variant for one in published if isinstance(one, Window)] == ["float32", "int8"]
    assert ["int8" in spec.artifact for spec in board.bench.running] == [False]
    assert {window.variant for window in board.windows(2)} == {"float32", "int8"}


def test_a_kernel_upgrade_while_offline_is_not_forgotten(board: Board) -> None:
    board.measures()
    board.receipted()
    before = board.link.take()
    board.link.disconnect()
    for _ in range(2):
        board.clock.now_s += LENGTH_S
        board.turn()
    board.machine.kernel = "6.6.0"
    board.restart(reboot=True)
    board.turn()
    for _ in range(2):
        board.clock.now_s += LENGTH_S
        board.turn()

    board.link.connect()
    board.turn()
    published = [one.message for one in [*before, *board.link.take()]]
    kernels: dict[str, str] = {}
    told = []
    for message in published:
        if message.schema == "context/1":
            kernels[message.digest] = message.run.kernel
        elif isinstance(message, Window):
            told.append((message.incarnation.counter, kernels[message.context]))  # known before it is named
    assert sorted(set(told)) == [(1, "6.1.0"), (2, "6.6.0")]


# what a reader of the code found could go wrong


def test_a_release_that_vanishes_while_several_load_is_fetched_once(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.release = board.fetcher.add(*small_manifest("float32", "int8", "int4"))
    three = board.desired(variants=tuple(DesiredVariant(name=name) for name in ("float32", "int8", "int4")))
    board.measures(three)
    board.bench.on_measure = dies_of("SIGSEGV")
    board.windows(1)
    slot = board.directory / "slots"
    shutil.rmtree(slot / (slot / "current").readlink().name / "golden")
    board.clock.now_s += RESTART_MAX_S
    board.turn()
    board.turn()

    assert len(board.fetcher.started) == 2
    board.outbox.close()


@pytest.mark.parametrize("order", ["loading", "measuring"])
def test_a_runner_that_answers_what_it_was_not_asked_has_failed(board: Board, order: str) -> None:
    if order == "loading":
        board.bench.on_load = lambda spec: measured(spec, [1.0])
        board.measures()
    else:
        board.measures()

        def wrong(spec: RunnerSpec, before: int) -> Any:
            return loaded(spec)

        board.bench.on_measure = wrong
        board.clock.now_s += LENGTH_S
        board.turn()

    failures = [one.detail for one in board.sent(Event) if one.event == "runner-failed"]
    assert len(failures) == 2
    assert all("which was not asked for" in failure for failure in failures)


def test_a_device_that_was_suspended_has_no_wall_clock_that_jumped(board: Board) -> None:
    board.measures()
    asleep_s = 8 * 3600.0
    board.clock.uptime_s = lambda: board.clock.now_s + asleep_s  # type: ignore[method-assign]
    board.clock.wall_s = lambda: 1.7e9 + board.clock.now_s + asleep_s  # type: ignore[method-assign]
    board.clock.now_s += LENGTH_S
    board.turn()

    assert [one for one in board.sent(Event) if one.event == "clock-jumped"] == []


def test_a_broker_that_floods_with_nonsense_is_said_once_an_hour_in_one_line(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    board.link.connect()
    for _ in range(200):
        board.link.receive("x\nERROR all is lost " * 1000, b"{")
        board.turn()
    said = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert len(said[0]) < 1000

    board.clock.now_s += 3600.0
    board.link.receive("nonsense", b"{")
    board.turn()
    assert "199 more before it" in caplog.text


def test_what_a_command_takes_does_not_put_off_the_schedule(board: Board) -> None:
    board.measures()
    board.windows(1)

    def costly(spec: RunnerSpec, before: int) -> Any:
        board.machine.cpu_s += 3600.0
        return measured(spec, [1.0])

    board.bench.on_measure = costly
    command(board, sustained_s=3600.0)
    board.bench.on_measure = steady()
    board.link.take()

    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}


def test_a_command_that_expires_while_it_is_done_frees_the_bench(board: Board) -> None:
    board.measures()
    board.windows(1)
    board.bench.held = True
    command(board, ttl_s=5.0)
    board.clock.now_s += 5.0
    board.turn()
    board.bench.held = False
    board.turn()
    board.link.take()

    assert {window.variant for window in board.windows(1)} == {"float32", "int8"}


def test_a_runner_that_leaks_on_command_has_answered_it_once(board: Board) -> None:
    board.measures()
    board.windows(1)
    for runner in board.bench.runners:
        if runner.spec and runner.pid:
            board.machine.resident[runner.pid] = 40_000_000
    board.windows(1)
    leaking = next(runner for runner in board.bench.runners if runner.spec and "float32" in runner.spec.artifact)
    assert leaking.pid is not None
    board.machine.resident[leaking.pid] += 300_000_000
    command(board, variant=None)

    (reply,) = board.sent(Reply)
    assert (reply.status, len(reply.seqs), reply.detail) == ("done", 2, "")


def test_a_shorter_window_has_stretched_nothing(board: Board) -> None:
    board.measures(board.desired(window_length_s=210.0))
    board.clock.now_s += 210.0
    board.turn()
    board.told(board.desired(revision=2))
    windows = board.windows(2)

    assert {window.overhead.stretched_ratio for window in windows if window.overhead} == {1.0}
    assert windows[-1].length_s == LENGTH_S


# a fault of its own


class Faulty:
    """A supervisor whose turns end in a fault, some of them."""

    def __init__(self, faults: list[bool]) -> None:
        self.faults = faults
        self.turns = self.sends = 0
        self.stopped = False
        self.status = "here"

    def start(self) -> None:
        pass

    def turn(self) -> float:
        self.turns += 1
        if self.faults.pop(0):
            raise TypeError("a fault of ours")
        return 0.0

    def send(self) -> None:
        self.sends += 1

    def waitables(self) -> list[int]:
        return []

    def stop(self) -> None:
        self.stopped = True


class Hurried(FakeClock):
    """A clock on which every pause is over."""

    def monotonic_s(self) -> float:
        self.now_s += 100.0
        return self.now_s


def turned(faults: list[bool]) -> Faulty:
    faulty = Faulty(faults)
    wake, wake_up = os.pipe()
    try:
        supervise(faulty, wake, lambda: not faulty.faults, Hurried(), ServiceManager({}))  # type: ignore[arg-type]
    finally:
        os.close(wake)
        os.close(wake_up)
        assert faulty.stopped
    return faulty


def test_a_fault_of_its_own_does_not_end_the_agent_and_what_waits_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    faulty = turned([False, True, True, False, True, False])

    assert (faulty.turns, faulty.sends) == (6, 3)
    assert [record.getMessage() for record in caplog.records] == [
        f"a fault of the agent's own, {count} in a row; it goes on" for count in (1, 2, 1)
    ]


def test_a_fault_that_does_not_pass_is_left_to_the_service_manager() -> None:
    with pytest.raises(TypeError):
        turned([True] * 100)


def test_why_a_release_does_not_run_is_left_for_whoever_asks(board: Board) -> None:
    def trouble() -> str | None:
        found = standings.read(board.directory / standings.FILE_NAME)
        assert found is not None
        return found.trouble

    board.link.connect()
    board.told()
    board.fetcher.fail("release 1234… is not signed by a key that this device trusts", "release")
    board.turn()
    assert trouble() == "release 1234… is not signed by a key that this device trusts"

    board.told(board.desired(revision=2, release=board.other))
    board.fetcher.finish()
    board.turn()
    assert trouble() is None


def test_what_was_given_up_is_told_in_words_too(board: Board) -> None:
    board.measures()
    board.receipted()
    board.link.disconnect()
    board.outbox._max_bytes = 20_000
    board.windows(60)
    board.link.connect()
    board.turn()

    event = next(one for one in board.sent(Event) if one.event == "loss")
    count = sum(loss.last_seq - loss.first_seq + 1 for loss in event.losses)
    assert event.detail == f"{count} messages: summarised"
