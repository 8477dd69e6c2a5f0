from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from evenfleet_collector.artifacts import (
    MAX_PART_AGE_S,
    MAX_PARTS,
    ArtifactFolder,
    ArtifactTooLargeError,
    DiskFullError,
    OffsetError,
    Upload,
)
from evenfleet_shared.errors import ArtifactError, StoreError
from evenfleet_shared.manifest import FileRef

PAYLOAD = b"a model" * 100
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> ArtifactFolder:
    return ArtifactFolder(tmp_path / "artifacts", max_bytes=10_000)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "artifacts").iterdir())


def test_bytes_with_the_digest_of_their_name_are_kept_under_it(folder: ArtifactFolder, tmp_path: Path) -> None:
    with folder.receive(DIGEST) as upload:
        upload.write(PAYLOAD[:100])
        upload.write(PAYLOAD[100:])
        upload.commit()

    path = folder.find(DIGEST)
    assert path is not None
    assert path.read_bytes() == PAYLOAD
    assert files(tmp_path) == [DIGEST]


def test_other_bytes_are_refused_and_leave_nothing(folder: ArtifactFolder, tmp_path: Path) -> None:
    with folder.receive(DIGEST) as upload:
        upload.write(PAYLOAD + b"!")
        with pytest.raises(ArtifactError, match=f"expected bytes with sha256 {DIGEST}"):
            upload.commit()
    assert files(tmp_path) == []


def test_upload_that_ends_early_leaves_nothing(folder: ArtifactFolder, tmp_path: Path) -> None:
    with folder.receive(DIGEST) as upload:
        upload.write(PAYLOAD[:100])
    assert files(tmp_path) == []


def test_too_many_bytes_are_refused_and_leave_nothing(folder: ArtifactFolder, tmp_path: Path) -> None:
    with pytest.raises(ArtifactTooLargeError, match="at most 10,000"), folder.receive(DIGEST) as upload:
        upload.write(bytes(10_001))
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "..", "../" * 21 + "x", "A" * 64, f"{DIGEST}\n", f"/{DIGEST[1:]}", "\0" * 64])
def test_name_that_is_no_digest_names_no_file(folder: ArtifactFolder, name: str) -> None:
    assert folder.find(name) is None
    with pytest.raises(ArtifactError, match="64 hexadecimal digits"), folder.receive(name):
        pass


class CableCutError(Exception):
    """What is none of our errors."""


def break_off(folder: ArtifactFolder, payload: bytes, offset: int = 0) -> None:
    with suppress(CableCutError), folder.receive(DIGEST, offset) as upload:
        upload.write(payload)
        raise CableCutError


def test_upload_that_broke_off_goes_on_where_it_stopped(folder: ArtifactFolder, tmp_path: Path) -> None:
    assert folder.received(DIGEST) == 0
    break_off(folder, PAYLOAD[:100])
    break_off(folder, PAYLOAD[100:250], 100)
    assert folder.received(DIGEST) == 250
    assert folder.find(DIGEST) is None

    with folder.receive(DIGEST, 250) as upload:
        upload.write(PAYLOAD[250:])
        upload.commit()

    path = folder.find(DIGEST)
    assert path is not None
    assert path.read_bytes() == PAYLOAD
    assert files(tmp_path) == [DIGEST]


def test_upload_that_broke_off_goes_on_after_a_restart(folder: ArtifactFolder, tmp_path: Path) -> None:
    break_off(folder, PAYLOAD[:100])
    restarted = ArtifactFolder(tmp_path / "artifacts")
    with restarted.receive(DIGEST, restarted.received(DIGEST)) as upload:
        upload.write(PAYLOAD[100:])
        upload.commit()
    assert files(tmp_path) == [DIGEST]


def test_upload_at_another_place_than_where_it_stopped_is_refused(folder: ArtifactFolder) -> None:
    break_off(folder, PAYLOAD[:100])
    for offset in (99, 101):
        with pytest.raises(OffsetError, match=f"go on at byte 100, found {offset}"), folder.receive(DIGEST, offset):
            pass
    with pytest.raises(OffsetError, match="go on at byte 0, found 5"), folder.receive("0" * 64, 5):
        pass
    assert folder.received(DIGEST) == 100


def test_part_that_was_spoilt_is_refused_and_gone(folder: ArtifactFolder, tmp_path: Path) -> None:
    break_off(folder, b"?" * 100)
    with folder.receive(DIGEST, 100) as upload:
        upload.write(PAYLOAD[100:])
        with pytest.raises(ArtifactError, match="expected bytes with sha256"):
            upload.commit()
    assert files(tmp_path) == []


def test_part_that_is_being_written_is_nobody_elses(folder: ArtifactFolder, tmp_path: Path) -> None:
    """A client that lost its connection asks again before the collector has seen the loss."""
    with folder.receive(DIGEST) as first:
        first.write(PAYLOAD[:100])
        assert folder.received(DIGEST) == 0
        with pytest.raises(OffsetError), folder.receive(DIGEST, 100):
            pass
        with folder.receive(DIGEST) as second:
            second.write(PAYLOAD)
            second.commit()
        first.write(PAYLOAD[100:])
        first.commit()
    assert files(tmp_path) == [DIGEST]


def test_part_too_large_for_an_artifact_is_not_gone_on_with(folder: ArtifactFolder, tmp_path: Path) -> None:
    break_off(folder, PAYLOAD)
    assert ArtifactFolder(tmp_path / "artifacts", max_bytes=100).received(DIGEST) == 0
    with pytest.raises(ArtifactTooLargeError), folder.receive(DIGEST, len(PAYLOAD)) as upload:
        upload.write(bytes(10_000))
    assert files(tmp_path) == []


def test_part_that_nobody_went_on_with_is_removed_after_a_day(folder: ArtifactFolder, tmp_path: Path) -> None:
    break_off(folder, PAYLOAD[:100])
    (left,) = (tmp_path / "artifacts").iterdir()
    for age_s, there in ((MAX_PART_AGE_S - 60, True), (MAX_PART_AGE_S + 60, False)):
        os.utime(left, (time.time() - age_s, time.time() - age_s))
        ArtifactFolder(tmp_path / "artifacts")
        assert left.exists() is there


def test_oldest_parts_give_way_but_none_that_is_being_written(folder: ArtifactFolder, tmp_path: Path) -> None:
    with folder.receive(DIGEST) as upload:
        upload.write(PAYLOAD)
        (writing,) = (tmp_path / "artifacts").iterdir()
        os.utime(writing, (1, 1))
        for number in range(MAX_PARTS + 5):
            break_off(folder, PAYLOAD[:100])
            newest = max((tmp_path / "artifacts").iterdir(), key=lambda path: path.stat().st_mtime_ns)
            os.utime(newest, (time.time() - 1000 + number,) * 2)
        assert writing.exists()
        assert len(files(tmp_path)) <= MAX_PARTS + 2
        upload.commit()


def test_missing_are_those_absent_or_of_another_size(folder: ArtifactFolder) -> None:
    folder.add(PAYLOAD)
    here = FileRef(file="artifacts/a", sha256=DIGEST, size_bytes=len(PAYLOAD))
    other_size = FileRef(file="artifacts/b", sha256=DIGEST, size_bytes=1)
    absent = FileRef(file="artifacts/c", sha256="0" * 64, size_bytes=1)
    assert folder.missing([here, other_size, absent]) == (other_size, absent)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/artifacts"):
        ArtifactFolder(tmp_path / "file" / "artifacts")


def test_folder_that_vanished_is_a_store_error(folder: ArtifactFolder, tmp_path: Path) -> None:
    (tmp_path / "artifacts").rmdir()
    with pytest.raises(StoreError, match="cannot keep the artifact"):
        folder.add(PAYLOAD)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with Upload(full, tmp_path / "temporary", tmp_path / DIGEST, 10_000) as upload:
        upload.write(PAYLOAD)
        with pytest.raises(DiskFullError, match="the disk is full"):
            upload.commit()
    assert list(tmp_path.iterdir()) == []


def test_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = ArtifactFolder(tmp_path / "artifacts")
    payload = bytes(200_000)
    with _largest_file(100_000), pytest.raises(StoreError, match="nothing kept"):
        folder.add(payload)
    assert files(tmp_path) == []


@contextmanager
def _largest_file(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
