from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from evenfleet_agent.runner import unpack
from evenfleet_shared.errors import ModelRefusedError


def tar_of(path: Path, *members: tarfile.TarInfo, content: bytes = b"content", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    info.mode = 0o4777
    return info


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_model_at_the_top_is_unpacked_there(tmp_path, directory, mode):
    archive = tar_of(tmp_path / "m.tar", member("./saved_model.pb"), member("./variables/variables.index"), mode=mode)
    assert unpack.saved_model(archive, directory) == directory
    assert (directory / "variables/variables.index").read_bytes() == b"content"


def test_model_in_one_folder_is_found_there(tmp_path, directory):
    archive = tar_of(tmp_path / "m.tar", member("model", tarfile.DIRTYPE), member("model/saved_model.pb"))
    assert unpack.saved_model(archive, directory) == directory / "model"


def test_modes_of_the_archive_are_not_taken_over(tmp_path, directory):
    unpack.saved_model(tar_of(tmp_path / "m.tar", member("saved_model.pb")), directory)
    assert not (directory / "saved_model.pb").stat().st_mode & 0o7111


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("a/../../outside"),
        member("/tmp/outside"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
def test_hostile_member_refuses_the_whole_archive(tmp_path, directory, hostile):
    archive = tar_of(tmp_path / "m.tar", member("saved_model.pb"), hostile)
    with pytest.raises(ModelRefusedError, match="not unpacked"):
        unpack.saved_model(archive, directory)
    assert not (tmp_path / "outside").exists()
    assert [path.name for path in directory.iterdir()] == ["saved_model.pb"]


def test_link_cannot_be_written_through_by_a_later_member(tmp_path, directory):
    archive = tar_of(tmp_path / "m.tar", member("a", tarfile.SYMTYPE, str(tmp_path)), member("a/outside"))
    with pytest.raises(ModelRefusedError):
        unpack.saved_model(archive, directory)
    assert not (tmp_path / "outside").exists()


def test_two_members_of_one_name_are_refused(tmp_path, directory):
    with pytest.raises(ModelRefusedError, match="cannot be unpacked"):
        unpack.saved_model(tar_of(tmp_path / "m.tar", member("x"), member("x")), directory)


def test_more_bytes_than_allowed_stop_the_unpacking(tmp_path, directory):
    archive = tar_of(tmp_path / "m.tar", member("x"), content=bytes(5000), mode="w:gz")
    with pytest.raises(ModelRefusedError, match="more than 4000 bytes"):
        unpack.saved_model(archive, directory, max_bytes=4000)


def test_more_files_than_allowed_stop_the_unpacking(tmp_path, directory):
    archive = tar_of(tmp_path / "m.tar", *(member(str(number)) for number in range(4)))
    with pytest.raises(ModelRefusedError, match="more than 3 files"):
        unpack.saved_model(archive, directory, max_files=3)


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
def test_file_that_is_no_tar_is_refused(tmp_path, directory, content):
    (tmp_path / "m.tar").write_bytes(content)
    with pytest.raises(ModelRefusedError, match="not a whole tar"):
        unpack.saved_model(tmp_path / "m.tar", directory)


def test_tar_that_was_cut_off_is_refused(tmp_path, directory):
    archive = tar_of(tmp_path / "m.tar", member("saved_model.pb"), content=bytes(100_000))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(ModelRefusedError, match=r"m\.tar"):
        unpack.saved_model(archive, directory)
