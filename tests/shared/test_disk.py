from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evenfleet_shared.disk import held, write_whole
from fakes.disks import FoldersThatCannotBeSynced, SyncedDisk


def test_what_is_written_whole_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SyncedDisk(monkeypatch)
    for payload in (b"one", b"two"):
        write_whole(tmp_path / "file", payload)
        assert (tmp_path / "file").read_bytes() == payload
        assert disk.outlives_a_power_cut(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    # The draft is where writing fails at once.
    (tmp_path / "file.new").symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be_synced_is_an_error_after_the_new_content_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", b"old")
    FoldersThatCannotBeSynced(monkeypatch)

    with pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "file", b"new")

    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lock_that_is_held_is_refused_to_another_and_free_again_afterwards(tmp_path: Path) -> None:
    with held(tmp_path / "lock"), pytest.raises(BlockingIOError), held(tmp_path / "lock"):
        pass
    with held(tmp_path / "lock"):
        pass


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from evenfleet_shared.disk import held\n"
        "with held(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BlockingIOError), held(tmp_path / "lock"):
            pass
        holder.kill()
    with held(tmp_path / "lock"):
        pass
