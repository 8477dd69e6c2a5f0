"""What is left on disk of the broker session, and how seldom it is written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from evenfleet_agent.standing import RECEIPT_EVERY_S, Standing, StandingFile, read
from fakes.disks import SyncedDisk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "standing.json"


def written(path: Path) -> bool:
    """Whether the file was written since the last look."""
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def test_a_session_is_written_when_it_begins_and_ends_with_the_reason_and_since_when(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    file.connected(10.0)
    assert read(path) == Standing(boot="boot-1", connected=True, since_s=10.0, reason=None, receipt_s=None)

    file.disconnected("no broker answers", 20.0)
    assert read(path) == Standing(
        boot="boot-1", connected=False, since_s=20.0, reason="no broker answers", receipt_s=None
    )


def test_a_lack_of_a_session_began_when_it_began_whatever_its_reason_is_now(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    file.disconnected("no broker answers", 20.0)
    file.disconnected("bad password", 50.0)

    found = read(path)
    assert found is not None
    assert (found.since_s, found.reason) == (20.0, "bad password")


def test_nothing_is_written_that_is_there_already(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    file.disconnected("no broker answers", 20.0)
    assert written(path)

    for now_s in range(21, 1000):
        file.disconnected("no broker answers", float(now_s))
    assert not written(path)


def test_receipts_are_written_once_a_minute_at_most(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    writes = 0
    for now_s in range(3600):
        file.receipted(float(now_s))
        writes += written(path)

    assert writes == 3600 / RECEIPT_EVERY_S


def test_a_receipt_is_remembered_by_the_next_process_but_not_over_a_boot(path: Path) -> None:
    StandingFile(path, "boot-1").receipted(100.0)

    StandingFile(path, "boot-1").connected(110.0)
    found = read(path)
    assert found is not None
    assert found.receipt_s == 100.0

    StandingFile(path, "boot-2").connected(5.0)
    found = read(path)
    assert found is not None
    assert found.receipt_s is None


@pytest.mark.parametrize("left", [b"", b"{", b"\xff\xfe", b"null", b'{"boot": 3}', b"[" * 100_000])
def test_what_a_power_cut_left_is_nothing(path: Path, left: bytes) -> None:
    path.write_bytes(left)

    assert read(path) is None
    StandingFile(path, "boot-1").connected(1.0)
    assert read(path) is not None


def test_a_full_disk_leaves_what_was_written_before_and_no_draft(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    file.connected(1.0)
    (path.parent / f"{path.name}.new").symlink_to("/dev/full")

    file.disconnected("no broker answers", 2.0)

    found = read(path)
    assert found is not None
    assert found.connected
    assert list(path.parent.iterdir()) == [path]


def test_no_flash_is_worn_out_by_syncing_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SyncedDisk(monkeypatch)
    StandingFile(path, "boot-1").connected(1.0)

    assert path.exists()
    assert not disk.synced_anything


def test_a_directory_that_cannot_be_written_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = StandingFile(path.parent / "gone" / path.name, "boot-1")
    for now_s in (1.0, 2.0, 3.0):
        file.connected(now_s)
        file.disconnected("no broker answers", now_s)

    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "cannot write" in said.message


def test_variants_are_written_when_one_of_them_changes_and_not_at_every_turn(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    file.runs({"int8": "starting"})
    assert written(path)
    for _ in range(100):
        file.runs({"int8": "starting"})
    assert not written(path)

    file.runs({"int8": "failed, starting again: \udcff"})
    found = read(path)
    assert found is not None
    assert found.variants == {"int8": "failed, starting again: ?"}


def test_what_the_agent_takes_is_written_once_a_minute_at_most(path: Path) -> None:
    file = StandingFile(path, "boot-1")
    writes = 0
    for now_s in range(3600):
        file.took(0.01 + now_s * 1e-6, 0.1, float(now_s))
        writes += written(path)

    assert writes == 60
