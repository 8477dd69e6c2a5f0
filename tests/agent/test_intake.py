"""What the agent believes of a directory that other users' processes write: as little as it can."""

from __future__ import annotations

import fcntl
import grp
import logging
import math
import os
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evenfleet_agent import intake as intake_module
from evenfleet_agent import probe
from evenfleet_agent.appwindow import AppBody, message
from evenfleet_agent.intake import MAX_APPS, MAX_RINGS_OF_OWNER, Intake
from evenfleet_agent.probe import Probe
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation

NAME = "ring-1-0123456789abcdef"
NOBODY = 65534


@pytest.fixture
def rings(tmp_path: Path) -> Path:
    (tmp_path / "rings").mkdir()
    return tmp_path / "rings"


@pytest.fixture
def intake(rings: Path, tmp_path: Path) -> Intake:
    return Intake(rings, kept=tmp_path / "probe.json", budget_ratio=0.01)


def close(intake: Intake) -> list[AppBody]:
    return intake.close_windows(length_s=60.0, uptime_s=1.0, wall_s=0.0)


class HandMade:
    """A ring written by hand, as a hostile process would; its lock is held until `die`."""

    def __init__(self, path: Path, *, app: bytes = b"app", model: bytes = b"", **header: Any) -> None:
        self.path = path
        self._file = path.open("w+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.truncate(self._file.fileno(), probe.FILE_BYTES)
        fields = {
            "magic": probe.MAGIC,
            "version": probe.VERSION,
            "records": probe.RECORD_SLOTS,
            "samples": probe.SAMPLE_SLOTS,
            "sample_bytes": probe.SAMPLE_BYTES,
            "pid": 1,
            "zero": 0,
            "first": 1,
            "missed": 0,
            **header,
        }
        self.write(0, probe.HEADER.pack(*fields.values()))
        self.write(probe.NAMES_AT, probe.NAMES.pack(app, model))

    def write(self, at: int, data: bytes) -> None:
        os.pwrite(self._file.fileno(), data, at)

    def record(self, number: int, noted: int = 1_000_000, *, check: int | None = None) -> None:
        at = probe.HEADER_BYTES + (number % probe.RECORD_SLOTS) * probe.RECORD.size
        self.write(at, probe.RECORD.pack(noted, number << probe.NUMBER_SHIFT ^ noted if check is None else check))

    def sample(self, number: int, body: bytes, *, checksum: int | None = None) -> None:
        at = probe.SAMPLES_AT + (number % probe.SAMPLE_SLOTS) * probe.SAMPLE_BYTES
        found = zlib.crc32(body) if checksum is None else checksum
        self.write(at, (probe.SAMPLE_FRONT.pack(number, found, len(body)) + body)[: probe.SAMPLE_BYTES])

    def shorten(self, size: int) -> None:
        os.truncate(self._file.fileno(), size)

    def die(self) -> None:
        self._file.close()


@pytest.fixture
def ring(rings: Path) -> Iterator[HandMade]:
    made = HandMade(rings / NAME)
    yield made
    made.die()


def sample_body(inputs: list[tuple[float, ...]], rows: list[tuple[int, float]], *, one_in: int = 5) -> bytes:
    return b"".join(
        [
            probe.SAMPLE_HEAD.pack(1000, one_in, len(inputs), len(rows), 0),
            *(probe.SAMPLE_INPUT.pack(int(n), 0, 0, 0, *figures) for n, *figures in inputs),
            *(probe.SAMPLE_ROW.pack(*row) for row in rows),
        ]
    )


def test_what_an_honest_ring_says_is_taken(intake: Intake, ring: HandMade) -> None:
    for number in range(1, 5):
        ring.record(number, 2_000_000 if number < 4 else 1 | probe.FAILED)
    ring.sample(1, sample_body([(10, 0.5, 0.1, 0.0, 1.0)], [(3, 0.25)]))
    (window,) = close(intake)
    assert (window.calls, window.exceptions, window.dropped, window.refused) == (4, 1, 0, 0)
    assert window.latency is not None
    assert window.latency.p50_ms == 2.0
    assert window.statistics is not None
    assert (window.statistics.one_in, window.statistics.samples, window.statistics.classes) == (5, 1, ((3, 1),))
    assert (window.length_s, window.ended_uptime_s, window.ended_wall_s) == (60.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"magic": b"NOTAPROB"}, "not-a-ring"),
        ({"version": 2}, "other-version"),
        ({"records": 1 << 31}, "other-version"),
        ({"sample_bytes": 0}, "other-version"),
        ({"first": 0}, "bad-number"),
        ({"first": 2**63}, "bad-number"),
        ({"first": 5, "missed": 5}, "bad-number"),
        ({"app": b"../../etc"}, "bad-name"),
        ({"app": b""}, "bad-name"),
        ({"app": b"line\nbreak"}, "bad-name"),
        ({"app": b"\xff" * 64}, "bad-name"),
        ({"model": b"a b"}, "bad-name"),
    ],
)
def test_header_that_is_no_rings_is_refused_and_its_file_removed_once_free(
    rings: Path, intake: Intake, header: dict[str, Any], reason: str
) -> None:
    made = HandMade(rings / NAME, **header)
    made.record(1)
    for _ in range(3):
        assert close(intake) == []
    assert intake.refusals == {reason: 1}
    assert made.path.exists()
    made.die()
    close(intake)
    assert not made.path.exists()


@pytest.mark.parametrize("size", [0, 10, probe.HEADER_BYTES, probe.FILE_BYTES - 1, probe.FILE_BYTES + 1, 1 << 40])
def test_file_of_another_size_is_refused_unread(rings: Path, intake: Intake, size: int) -> None:
    made = HandMade(rings / NAME)
    made.record(1)
    made.shorten(size)
    assert close(intake) == []
    assert intake.refusals == {"not-a-ring": 1}
    made.die()


def test_link_is_not_followed(rings: Path, intake: Intake, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    made = HandMade(target)
    made.record(1)
    (rings / NAME).symlink_to(target)
    assert close(intake) == []
    assert intake.refusals == {"cannot-open": 1}
    assert target.exists()
    assert not (rings / NAME).is_symlink()  # it would keep a ring's place
    made.die()


def test_pipe_socket_and_directory_make_nobody_wait(rings: Path, intake: Intake) -> None:
    os.mkfifo(rings / NAME)
    (rings / "ring-2-0123456789abcdef").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(rings / "ring-3-0123456789abcdef"))
    assert close(intake) == []
    assert intake.refusals == {"not-a-ring": 2, "cannot-open": 1}


@pytest.mark.parametrize(
    "name", ["ring-1", "ring-1-xyz", "ring-1-0123456789abcdef.new", "..", "budget", "ring-1-0123456789abcde\n"]
)
def test_file_of_another_name_is_left_alone(rings: Path, intake: Intake, name: str) -> None:
    if name != "..":
        HandMade(rings / name).die()
    assert close(intake) == []
    assert intake.refusals == {}
    assert name == ".." or (rings / name).exists()


def test_file_that_is_shortened_between_reads_ends_nothing(intake: Intake, ring: HandMade) -> None:
    """A mapping of it would end the supervisor with SIGBUS."""
    ring.record(1)
    intake.poll()
    ring.shorten(100)
    (window,) = close(intake)
    assert window.calls == 1


def test_durations_that_no_call_takes_are_refused_and_counted(intake: Intake, ring: HandMade) -> None:
    ring.record(1, probe.FAILED - 1)
    ring.record(2, 3_000_000)
    (window,) = close(intake)
    assert (window.calls, window.refused) == (2, 1)
    assert window.latency is not None
    assert window.latency.max_ms == 3.0


def test_place_that_was_claimed_and_never_written_is_dropped_the_second_time(intake: Intake, ring: HandMade) -> None:
    """A thread claimed 2 and was switched away, or died, before it wrote: 3 is there already."""
    ring.record(1)
    ring.record(3)
    (window,) = close(intake)
    assert (window.calls, window.dropped) == (1, 0)
    (window,) = close(intake)
    assert (window.calls, window.dropped) == (2, 1)


def test_place_that_is_written_late_is_no_drop(intake: Intake, ring: HandMade) -> None:
    ring.record(1)
    ring.record(3)
    intake.poll()
    ring.record(2)
    (window,) = close(intake)
    assert (window.calls, window.dropped) == (3, 0)


def test_record_that_is_half_written_is_read_when_it_is_whole(intake: Intake, ring: HandMade) -> None:
    ring.record(1)
    ring.record(2, 5_000_000, check=2 << probe.NUMBER_SHIFT ^ 777)
    assert close(intake)[0].calls == 1
    ring.record(2, 5_000_000)
    assert close(intake)[0].calls == 1


def test_number_that_no_counting_gets_to_is_refused(intake: Intake, ring: HandMade) -> None:
    ring.record(1)
    intake.poll()
    ring.record(2 + probe.RECORD_SLOTS * 2**33)
    (window,) = close(intake)
    assert window.calls == 1
    assert intake.refusals == {"bad-number": 1}
    ring.record(2)
    assert close(intake) == []  # or the first call would count twice


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ([(4, float("nan"), 0.1, 0.0, 1.0)], []),
        ([(4, 0.5, float("inf"), 0.0, 1.0)], []),
        ([(4, 0.5, -1.0, 0.0, 1.0)], []),
        ([(4, 7.0, 0.1, 0.0, 1.0)], []),
        ([(4, 0.9999995, 0.0, 1.0, 0.999999)], []),
        ([(2**32 - 1, 0.5, 0.1, 0.0, 1.0)], []),
        ([(4, 1e300, 1e300, 1e300, 1e300)], []),
        ([], [(1, -0.5)]),
        ([], [(1, float("inf"))]),
    ],
)
def test_statistics_that_are_none_are_counted_as_unreadable(
    intake: Intake, ring: HandMade, inputs: list[tuple[float, ...]], rows: list[tuple[int, float]]
) -> None:
    ring.record(1)
    ring.sample(1, sample_body(inputs, rows))
    (window,) = close(intake)
    assert window.statistics is not None
    assert (window.statistics.samples, window.statistics.unreadable) == (0, 1)


def test_statistics_that_are_half_written_wait_once_and_are_then_dropped(intake: Intake, ring: HandMade) -> None:
    ring.record(1)
    ring.sample(1, sample_body([], [(1, 0.5)]), checksum=1)
    ring.sample(2, sample_body([], [(2, 0.5)]))
    assert close(intake)[0].statistics is None
    ring.record(2)
    (window,) = close(intake)
    assert window.statistics is not None
    assert (window.statistics.dropped, window.statistics.classes) == (1, ((2, 1),))


# Close to each other, or to a bound: where a comparison that is a little too kind is found.
figures = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, math.nextafter(1.0, 0.0), 0.9999995, 0.999999, 1e100, -1e100, 1e300]), st.floats()
)
words = st.one_of(st.integers(0, 3_000_000_000), st.integers(0, 2**64 - 1))


@st.composite
def inputs_seen(draw: st.DrawFn) -> tuple[float, ...]:
    """Return elements, NaN, infinite, 0; mean, deviation, ends."""
    counts = draw(
        st.sampled_from([(4, 0, 0), (2**20, 0, 0), (4, 1, 2), (4, 1, 3), (0, 0, 0), (1, 2, 0), (2**32 - 1, 0, 0)])
    )
    if draw(st.integers(0, 3)) == 3:
        return (*counts, 0, *(draw(figures) for _ in range(4)))
    low, mean, high = (draw(st.sampled_from([1.0, 0.9999995, 0.999999])) for _ in range(3))
    by = draw(st.sampled_from([1.0, -3.7, 1e-300, 1e99]))
    return (*counts, 0, by * mean, draw(st.sampled_from([0.0, 0.1, 1e99])), by * low, by * high)


@st.composite
def sample_bodies(draw: st.DrawFn) -> bytes:
    """Return what a sample may say: mostly of the right form, cut or without one at times."""
    inputs = draw(st.lists(inputs_seen(), max_size=draw(st.sampled_from([1, 4]))))
    entropies = st.sampled_from([0.0, -0.0, 1e-45, 0.5, 99.0, 100.0, math.nan, -1.0, math.inf])
    rows = draw(st.lists(st.tuples(st.integers(0, 2**32 - 1), entropies), max_size=4))
    body = b"".join(
        [
            probe.SAMPLE_HEAD.pack(0, draw(st.integers(0, 2**32 - 1)), len(inputs), len(rows), 0),
            *(probe.SAMPLE_INPUT.pack(*one) for one in inputs),
            *(probe.SAMPLE_ROW.pack(*row) for row in rows),
        ]
    )
    return draw(st.sampled_from([body, body, body, body[: len(body) // 2], draw(st.binary(max_size=600))]))


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Return what is written between two turns: (place in the file, bytes); few of them into the header."""
    written = []
    first = draw(st.sampled_from([1, 1, 1, probe.RECORD_SLOTS, 2**46]))
    for place in range(draw(st.integers(0, 5))):
        number = first + place + draw(st.sampled_from([0, 0, 0, 1, probe.RECORD_SLOTS, 2**40]))
        noted = draw(words)
        check = draw(st.sampled_from([number << probe.NUMBER_SHIFT ^ noted, draw(words)])) & (2**64 - 1)
        at = probe.HEADER_BYTES + (number % probe.RECORD_SLOTS) * probe.RECORD.size
        written.append((at, probe.RECORD.pack(noted, check)))
    for place in range(draw(st.integers(0, 6))):
        number = 1 + place + draw(st.sampled_from([0, 0, 0, 0, 0, 0, probe.SAMPLE_SLOTS, 2**40, 2**60]))
        body = draw(sample_bodies())
        checksum = draw(st.sampled_from([zlib.crc32(body), zlib.crc32(body), 1]))
        at = probe.SAMPLES_AT + (number % probe.SAMPLE_SLOTS) * probe.SAMPLE_BYTES
        front = probe.SAMPLE_FRONT.pack(number, checksum, len(body))
        written.append((at, (front + body)[: probe.SAMPLE_BYTES]))
    written += draw(
        st.lists(st.tuples(st.integers(probe.UNREADABLE_AT, probe.FILE_BYTES - 64), st.binary(max_size=64)), max_size=2)
    )
    return written


def a_sample(number: int, body: bytes) -> bytes:
    return (probe.SAMPLE_FRONT.pack(number, zlib.crc32(body), len(body)) + body)[: probe.SAMPLE_BYTES]


ENDS_THE_WRONG_WAY_ROUND = a_sample(1, sample_body([(4, 0.9999995, 0.0, 1.0, 0.999999)], []))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(turns(), st.booleans()), min_size=1, max_size=3), st.integers(1, 2**46), st.integers(0, 2**46)
)
@example([([(probe.SAMPLES_AT + probe.SAMPLE_BYTES, ENDS_THE_WRONG_WAY_ROUND)], True)], 2, 0)
def test_whatever_a_ring_says_nothing_is_raised_and_the_window_is_a_message(
    written: list[tuple[list[tuple[int, bytes]], bool]], first: int, missed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        rings = Path(name)
        intake = Intake(rings, kept=rings / "kept", budget_ratio=0.01)
        made = HandMade(rings / NAME, first=first, missed=missed % first)
        if first > 1:
            made.record(first)
        for turn, closes in written:
            for at, data in turn:
                made.write(at, data)
            intake.poll()
            for window in close(intake) if closes else []:
                assert_is_message(window)
        made.die()
        for window in close(intake):
            assert_is_message(window)


def assert_is_message(window: AppBody) -> None:
    sent = message(window, device="press-07", incarnation=Incarnation(1, "0" * 8), seq=1, floor=1)
    encoded = messages.encode(sent)
    assert len(encoded) <= messages.MAX_MESSAGE_BYTES
    assert messages.decode("window", encoded) == sent


def test_one_owner_takes_no_more_than_its_share_of_places(rings: Path, intake: Intake) -> None:
    made = [HandMade(rings / f"ring-{number}-{number:016x}") for number in range(MAX_RINGS_OF_OWNER + 3)]
    for one in made:
        one.record(1)
    (window,) = close(intake)
    assert window.calls == MAX_RINGS_OF_OWNER
    assert intake.refusals == {"too-many-rings-of-owner": 3}
    for one in made:
        one.die()


def test_applications_beyond_the_bound_are_counted_as_refused(
    rings: Path, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "MAX_APPS", 2)
    made = [HandMade(rings / f"ring-{n}-{n:016x}", app=f"app{n}".encode()) for n in range(4)]
    for one in made:
        one.record(1)
    assert [window.app for window in close(intake)] == ["app0", "app1"]
    assert intake.refusals == {"too-many-apps": 2}
    assert MAX_APPS > 2
    for one in made:
        one.die()


def test_reason_of_a_refusal_is_logged_once(rings: Path, intake: Intake, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5):
        (rings / f"ring-{number}-{number:016x}").write_bytes(b"junk")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            close(intake)
    assert len(caplog.records) == 1
    assert intake.refusals == {"not-a-ring": 5}
    assert list(rings.iterdir()) == []


def test_windows_of_one_application_are_of_all_its_processes(rings: Path, intake: Intake) -> None:
    made = [HandMade(rings / f"ring-{n}-{n:016x}", model=b"m" if n else b"") for n in range(3)]
    for one in made:
        one.record(1)
    assert [(window.model, window.processes, window.calls) for window in close(intake)] == [(None, 1, 1), ("m", 2, 2)]
    for one in made:
        one.die()


def test_call_that_was_told_is_not_told_again_by_a_restarted_agent(
    rings: Path, intake: Intake, ring: HandMade, tmp_path: Path
) -> None:
    ring.record(1)
    ring.sample(1, sample_body([], [(1, 0.5)]))
    assert close(intake)[0].calls == 1
    ring.record(2)
    restarted = Intake(rings, kept=tmp_path / "probe.json", budget_ratio=0.01)
    (window,) = close(restarted)
    assert (window.calls, window.statistics) == (1, None)


def test_call_that_was_read_and_not_told_is_read_again_by_a_restarted_agent(
    rings: Path, intake: Intake, ring: HandMade, tmp_path: Path
) -> None:
    ring.record(1)
    intake.poll()
    restarted = Intake(rings, kept=tmp_path / "probe.json", budget_ratio=0.01)
    assert close(restarted)[0].calls == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff\xfe", b"{" * 70_000])
def test_damaged_record_of_positions_is_one_of_nothing(
    rings: Path, ring: HandMade, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "probe.json").write_bytes(content)
    ring.record(1)
    restarted = Intake(rings, kept=tmp_path / "probe.json", budget_ratio=0.01)
    assert close(restarted)[0].calls == 1


def test_application_that_does_nothing_has_no_window(intake: Intake, ring: HandMade) -> None:
    ring.record(1)
    assert len(close(intake)) == 1
    assert close(intake) == []


def test_empty_directory_name_is_refused_for_it_would_be_the_working_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory"):
        Intake(Path(), kept=tmp_path / "probe.json", budget_ratio=0.01)


def test_what_was_refused_is_trouble_by_reason_and_nothing_is_none(rings: Path, intake: Intake) -> None:
    close(intake)
    assert intake.trouble() is None
    for number in range(2):
        (rings / f"ring-{number}-{number:016x}").write_bytes(b"junk")
    made = HandMade(rings / NAME, version=2)
    close(intake)
    assert intake.trouble() == f"{rings}: not taken since the start: 2 not-a-ring, 1 other-version"
    made.die()


def test_directory_that_cannot_be_read_is_trouble_until_it_can(
    rings: Path, intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    rings.rmdir()
    rings.touch()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert close(intake) == []
            assert intake.trouble() == f"{rings}: cannot be read (Not a directory); applications are not counted"
        rings.unlink()
        rings.mkdir()
        close(intake)
        assert intake.trouble() is None
        rings.rmdir()
        rings.touch()
        close(intake)
    assert len(caplog.records) == 2


def test_missing_directory_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    intake = Intake(tmp_path / "missing", kept=tmp_path / "probe.json", budget_ratio=0.01)
    assert close(intake) == []
    assert caplog.records == []


def test_directory_is_made_for_a_group_whose_members_cannot_take_each_others_files(tmp_path: Path) -> None:
    Intake(tmp_path / "a" / "rings", kept=tmp_path / "probe.json", budget_ratio=0.25).prepare()
    assert (tmp_path / "a" / "rings").stat().st_mode & 0o7777 == 0o3770
    assert (tmp_path / "a" / "rings" / probe.BUDGET_NAME).read_text() == "0.25"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run an application as another user")
def test_another_user_of_the_group_leaves_a_ring_and_one_outside_it_does_not(tmp_path: Path) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, NOBODY))
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        parent.chmod(0o755)
        rings = parent / "rings"
        intake = Intake(rings, kept=tmp_path / "probe.json", budget_ratio=0.01, group=group.gr_name)
        intake.prepare()

        def run_app(groups: list[int]) -> str:
            code = f"""
import os
from evenfleet_agent.probe import Probe

os.setgroups({groups})
os.setgid({NOBODY})
os.setuid({NOBODY})
probe = Probe("app", directory={str(rings)!r})
with probe.timing():
    pass
print(probe.recording)
"""
            ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
            return ran.stdout.strip()

        assert run_app([]) == "False"
        assert run_app([group.gr_gid]) == "True"
        (ring,) = rings.glob("ring-*")
        # The agent, itself of the group, gets at it that way: it is another user's file.
        assert (ring.stat().st_uid, ring.stat().st_gid, ring.stat().st_mode & 0o777) == (NOBODY, group.gr_gid, 0o640)
        assert close(intake)[0].calls == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_directory_stays_the_agents_own_where_there_is_no_such_group(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "rings").mkdir(mode=0o700)
    Intake(tmp_path / "rings", kept=tmp_path / "kept", budget_ratio=0.01, group="no-such-group").prepare()
    status = (tmp_path / "rings").stat()
    assert (status.st_gid, status.st_mode & 0o7777) == (os.getegid(), 0o700 if is_there else 0o3770)


def test_budget_is_not_written_through_a_link(rings: Path, intake: Intake, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (rings / probe.BUDGET_NAME).symlink_to(target)
    intake.prepare()
    assert target.read_text() == "kept"
    assert (rings / probe.BUDGET_NAME).read_text() == "0.01"


def test_directory_that_cannot_be_made_is_said_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    intake = Intake(tmp_path / "file" / "rings", kept=tmp_path / "probe.json", budget_ratio=0.01)
    with caplog.at_level(logging.INFO):
        intake.prepare()
    assert "cannot leave their figures" in caplog.text
    assert close(intake) == []


def test_draft_of_a_process_that_died_in_between_is_removed_in_the_second_turn(rings: Path, intake: Intake) -> None:
    held = HandMade(rings / f".{NAME}")
    (rings / ".ring-2-0123456789abcdef").touch()
    intake.poll()
    assert len(list(rings.iterdir())) == 2
    intake.poll()
    assert [path.name for path in rings.iterdir()] == [f".{NAME}"]
    held.die()


def test_rings_of_the_dead_make_room_before_the_window_ends(rings: Path, intake: Intake) -> None:
    """A server that replaces its workers now and then has few that live and many that are done with."""

    def live_and_die(number: int) -> None:
        one = HandMade(rings / f"ring-{number}-{number:016x}")
        one.record(1)
        one.die()

    for number in range(1, MAX_RINGS_OF_OWNER):
        live_and_die(number)
    intake.poll()
    assert len(list(rings.iterdir())) == MAX_RINGS_OF_OWNER - 1
    live_and_die(MAX_RINGS_OF_OWNER)
    intake.poll()
    assert list(rings.iterdir()) == []
    live_and_die(MAX_RINGS_OF_OWNER + 1)
    assert close(intake)[0].calls == MAX_RINGS_OF_OWNER + 1
    assert list(rings.iterdir()) == []
    assert intake.refusals == {}


def test_probe_and_intake_agree_on_the_form_of_a_ring(rings: Path, intake: Intake) -> None:
    app = Probe("inspection", directory=rings)
    with app.timing():
        pass
    intake.poll()
    assert intake.refusals == {}
    (path,) = rings.iterdir()
    assert path.stat().st_size == probe.FILE_BYTES
    assert probe.RING_NAME.fullmatch(path.name)
