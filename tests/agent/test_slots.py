"""Two slots on disk, and a symlink that says which one runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evenfleet_agent.slots import Slots
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import StoreError
from fakes.disks import FoldersThatCannotBeSynced
from fakes.stores import small_manifest

MANIFEST, FILES = small_manifest()
GOLDEN = MANIFEST.golden


def fill(slot: Path, payload: bytes | None = None) -> str:
    payload = payload or manifests.encode(MANIFEST)
    (slot / "golden").mkdir(exist_ok=True)
    for file in (GOLDEN.inputs.file, GOLDEN.labels.file, GOLDEN.outputs.file):
        (slot / file).write_bytes(FILES[file])
    (slot / manifests.MANIFEST_NAME).write_bytes(payload)
    return manifests.digest(payload)


def test_nothing_runs_before_the_first_switch(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")

    assert (slots.current(), slots.release()) == (None, None)
    assert slots.idle().is_dir()


def test_a_switch_makes_the_idle_slot_the_one_that_runs_and_the_other_idle(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first = slots.idle()
    name = fill(first)
    slots.switch()

    assert slots.current() == first
    assert slots.release() == (MANIFEST, name)
    second = slots.idle()
    assert second != first

    slots.switch()
    assert (slots.current(), slots.idle()) == (second, first)


def test_what_runs_is_known_after_a_restart(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    name = fill(slots.idle())
    slots.switch()

    found = Slots(tmp_path).release()
    assert found is not None
    assert found[1] == name


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 10])
def test_a_damaged_manifest_is_no_release(tmp_path: Path, damage: bytes) -> None:
    slots = Slots(tmp_path)
    fill(slots.idle())
    slots.switch()
    current = slots.current()
    assert current is not None
    (current / manifests.MANIFEST_NAME).write_bytes(damage)

    assert slots.release() is None


@pytest.mark.parametrize("part", ["inputs", "labels", "outputs"])
def test_a_release_without_its_golden_set_is_none_and_has_no_variant(tmp_path: Path, part: str) -> None:
    slots = Slots(tmp_path)
    slot = slots.idle()
    fill(slot)
    (slot / "artifacts").mkdir()
    variant = MANIFEST.variants[0]
    (slot / variant.artifact.file).write_bytes(FILES[variant.artifact.file])
    slots.switch()
    assert slots.release() is not None
    assert slots.has(variant, GOLDEN)

    (slot / "golden" / f"{part}.npy").unlink()

    assert slots.release() is None
    assert not slots.has(variant, GOLDEN)


@pytest.mark.parametrize("target", ["c", "/etc", "../../etc", "nowhere"])
def test_a_symlink_to_somewhere_else_is_no_slot(tmp_path: Path, target: str) -> None:
    slots = Slots(tmp_path)
    (tmp_path / "current").symlink_to(target)

    assert (slots.current(), slots.release()) == (None, None)
    slots.switch()
    assert slots.current() is not None


def test_what_a_switch_that_was_cut_off_left_is_no_hindrance(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.switch()
    before = slots.current()
    (tmp_path / "current.new").symlink_to("b")

    slots.switch()

    assert slots.current() != before
    assert not (tmp_path / "current.new").is_symlink()


def test_a_switch_that_fails_leaves_the_old_one_running(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.switch()
    before = slots.current()
    (tmp_path / "current.new").mkdir()

    with pytest.raises(StoreError, match="the old release goes on"):
        slots.switch()

    assert slots.current() == before
    (tmp_path / "current.new").rmdir()
    slots.switch()
    assert slots.current() != before


def test_a_switch_that_may_not_outlive_a_power_cut_is_a_switch_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots(tmp_path)
    slots.switch()
    idle = slots.idle()
    FoldersThatCannotBeSynced(monkeypatch)

    slots.switch()

    assert slots.current() == idle
    assert "a power cut may bring the old release back" in caplog.text


def test_an_artifact_is_there_when_it_has_its_size(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    variant = MANIFEST.variants[0]
    assert not slots.has(variant, GOLDEN)
    slot = slots.idle()
    fill(slot)
    slots.switch()
    assert not slots.has(variant, GOLDEN)

    (slot / "artifacts").mkdir()
    artifact = slot / variant.artifact.file
    artifact.write_bytes(FILES[variant.artifact.file])
    assert slots.has(variant, GOLDEN)

    artifact.write_bytes(b"cut")
    assert not slots.has(variant, GOLDEN)
    shutil.rmtree(slot)
    assert not slots.has(variant, GOLDEN)


def test_a_directory_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"cannot create /proc/evenfleet: .*writable state_dir"):
        Slots(Path("/proc/evenfleet"))
