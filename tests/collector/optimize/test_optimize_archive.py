from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from evenfleet_collector.optimize import archive
from evenfleet_shared.errors import ModelRefusedError


def make(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_same_contents_give_the_same_bytes_whatever_the_order_dates_and_modes(tmp_path: Path) -> None:
    names = ["saved_model.pb", "variables/variables.index", "variables/data"]
    first, second = make(tmp_path / "a", names), make(tmp_path / "b", names[::-1])
    os.utime(second / "saved_model.pb", (1, 1))
    (second / "saved_model.pb").chmod(0o700)
    archive.pack(first, tmp_path / "a.tar")
    archive.pack(second, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["saved_model.pb", "variables", "variables/data", "variables/variables.index"]


def test_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "model", ["saved_model.pb"])
    (tmp_path / "secret").write_text("secret")
    (model / "asset").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelRefusedError, match="leads out of"):
        archive.pack(model, tmp_path / "m.tar")


def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    model = make(tmp_path / "model", ["saved_model.pb"])
    os.mkfifo(model / "pipe")
    with pytest.raises(ModelRefusedError, match="neither a file nor a directory"):
        archive.pack(model, tmp_path / "m.tar")
