from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evenfleet_collector.artifacts import ArtifactFolder, ArtifactTooLargeError, DiskFullError, Upload
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


def test_what_an_interrupted_upload_left_is_gone_after_the_next_start(folder: ArtifactFolder, tmp_path: Path) -> None:
    folder.add(PAYLOAD)
    (tmp_path / "artifacts" / ".upload-killed").write_bytes(b"half")
    ArtifactFolder(tmp_path / "artifacts")
    assert files(tmp_path) == [DIGEST]


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
