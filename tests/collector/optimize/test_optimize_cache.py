"""What the cache gives back is what was put into it, whole, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evenfleet_collector.optimize.cache import Cache, key
from evenfleet_shared.errors import ConfigError, ModelRefusedError


def put(cache: Cache, name: str, text: str = "it") -> Path:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)

    return cache.put(name, write)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_put_is_found_again_by_another_build(tmp_path: Path) -> None:
    put(Cache(tmp_path / "c"), "a")
    found = Cache(tmp_path / "c").find("a")
    assert found is not None
    assert (found / "sub" / "file").read_text() == "it"
    assert Cache(tmp_path / "c").find("b") is None


@pytest.mark.parametrize("harm", ["change", "remove", "no index", "garbage"])
def test_a_damaged_entry_is_none_and_is_made_again(tmp_path: Path, harm: str) -> None:
    cache = Cache(tmp_path)
    entry = put(cache, "a")
    if harm == "change":
        (entry / "sub" / "file").write_text("xx")
    elif harm == "remove":
        (entry / "sub" / "file").unlink()
    elif harm == "no index":
        (entry / "entry.json").unlink()
    else:
        (entry / "entry.json").write_bytes(b"\xff{")
    assert cache.find("a") is None
    assert (put(cache, "a", "anew") / "sub" / "file").read_text() == "anew"
    assert cache.find("a") is not None


def test_what_fails_half_way_leaves_no_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ModelRefusedError("no")

    with pytest.raises(ModelRefusedError):
        cache.put("a", fail)
    assert cache.find("a") is None
    assert names(tmp_path) == set()


def test_the_first_of_two_builds_that_make_the_same_stays(tmp_path: Path) -> None:
    first, second = Cache(tmp_path), Cache(tmp_path)
    put(first, "a", "first")
    assert (put(second, "a", "second") / "sub" / "file").read_text() == "first"
    assert names(tmp_path) == {"a"}


def test_what_was_not_used_for_longest_goes_first_and_the_newest_stays(tmp_path: Path) -> None:
    for age_s, name in ((300, "old"), (200, "used"), (100, "young")):
        os.utime(put(Cache(tmp_path), name, "x" * 200), (1e9 - age_s, 1e9 - age_s))
    cache = Cache(tmp_path, max_bytes=700)
    assert cache.find("used") is not None
    put(cache, "new", "x" * 200)
    assert names(tmp_path) == {"used", "new"}
    put(Cache(tmp_path, max_bytes=1), "large", "x" * 200)
    assert names(tmp_path) == {"large"}


def test_what_a_build_has_found_or_made_stays_for_it_however_full_the_cache_is(tmp_path: Path) -> None:
    """Variants are read again after the last was built; of 50,000 samples and 1,000 classes each is 200 MB."""
    put(Cache(tmp_path), "found")
    cache = Cache(tmp_path, max_bytes=1)
    assert cache.find("found") is not None
    put(cache, "first")
    put(cache, "second")
    assert names(tmp_path) == {"found", "first", "second"}


def test_what_a_killed_build_left_is_cleared_and_what_another_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-killed").mkdir()
    os.utime(tmp_path / ".unfinished-killed", (1e9, 1e9))
    (tmp_path / ".unfinished-alive").mkdir()
    put(Cache(tmp_path), "a")
    assert names(tmp_path) == {"a", ".unfinished-alive"}


def test_a_folder_that_cannot_be_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the cache .*file/c cannot be written in: .*--cache, or say --no-cache"):
        Cache(tmp_path / "file" / "c")


def test_keys_tell_all_parts_apart() -> None:
    assert len({key("a", "b"), key("ab"), key("a", "b", ""), key("b", "a")}) == 4
    assert key("a", "b") == key("a", "b")


def test_a_disk_that_takes_no_more_is_said_and_leaves_no_entry(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    with pytest.raises(ConfigError, match=r"the cache .* cannot be written: No space left on device"):
        cache.put("a", fill)
    assert names(tmp_path) == set()
