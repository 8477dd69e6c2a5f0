"""A power cut at any call, with any part of what was not synced: everything that was promised is there.

And the test of that test: without any one of our syncs something that was promised is missing.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from evenfleet_agent.lives import COUNTER_NAME, CounterFile
from evenfleet_agent.outbox import DAMAGED_NAME, FILE_NAME, open_outbox
from evenfleet_agent.slots import Slots
from evenfleet_shared import manifest as manifests
from evenfleet_shared import messages
from evenfleet_shared.errors import EvenfleetError
from fakes import power
from fakes.artifact_servers import artifact_server
from fakes.power import Call, Mercy
from fakes.stores import small_manifest

ROOT = Path(__file__).parents[2]
VARIANTS = ("float32", "int8")
MODELS = ("first", "second", "third")


@dataclass(frozen=True, slots=True)
class Recording:
    root: Path
    calls: list[Call]
    releases: list[str]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    return power.build_recorder(tmp_path_factory.mktemp("recorder"))


def record(directory: Path, recorder: Path, fsync: str) -> Recording:
    root = directory / "root"
    root.mkdir()
    with artifact_server() as server:
        releases = []
        for model in MODELS:
            manifest, files = small_manifest(*VARIANTS, model=model, artifact_bytes=2000)
            for payload in files.values():
                server.add(payload)
            releases.append(server.add(manifests.encode(manifest)))
        environment = {
            **os.environ,
            "LD_PRELOAD": str(recorder),
            "POWER_ROOT": str(root),
            "POWER_LOG": str(directory / "log"),
        }
        program = [sys.executable, "-m", "fakes.power_device", str(root), fsync, server.url, *releases, "--", *VARIANTS]
        subprocess.run(program, env=environment, cwd=ROOT / "tests", check=True, timeout=60)
    return Recording(root, power.read_calls(directory / "log"), releases)


@pytest.fixture(scope="module")
def recording(recorder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("power"), recorder, "always")


@dataclass(slots=True)
class Promises:
    """What a device had said before the cut."""

    counter: int = 0
    appended: frozenset[tuple[int, str, int]] = frozenset()
    settling: frozenset[tuple[int, str, int]] = frozenset()
    telling: int = 0
    told: int = 0
    switching: int = 0
    switched: int = 0

    @classmethod
    def of(cls, marks: Sequence[str]) -> Promises:
        found = cls()
        for what, *said in (mark.split() for mark in marks):
            if what == "life":
                found.counter = int(said[0])
            elif what == "appended":
                found.appended |= {(int(said[0]), said[1], int(said[2]))}
            elif what == "settling":
                found.settling |= {(int(said[0]), said[1], seq) for seq in range(1, int(said[2]) + 1)}
            else:
                setattr(found, what, int(said[0]))
        return found


def broken(left: Path, marks: Sequence[str], releases: Sequence[str], *, synced: bool = True) -> str | None:
    """Return which promise the files that a cut left break, None where all hold. Opens them as an agent does."""
    promised = Promises.of(marks)
    state = left / "state"
    counted = CounterFile(state / COUNTER_NAME).read()
    words = (f"{number:08x}" for number in count(1000))
    try:
        outbox = open_outbox(state, boot="after", new_random=lambda: next(words), max_bytes=1 << 20, jitter=lambda: 1.0)
    except EvenfleetError as error:
        return f"the outbox does not open: {error}"
    outbox.close()
    if (state / DAMAGED_NAME).exists():
        return "the outbox is damaged"
    if outbox.incarnation.counter <= promised.counter:
        return f"counter {outbox.incarnation.counter} after {promised.counter}"
    if counted < promised.counter:
        return f"the counter's own file says {counted} after {promised.counter}"
    with closing(sqlite3.connect(state / FILE_NAME)) as db:
        held = set(db.execute("SELECT counter, random, seq FROM messages"))
    if synced and (missing := promised.appended - promised.settling - held):
        return f"messages are missing: {sorted(missing)}"
    return _broken_desired(state, promised) or _broken_slots(state, promised, releases)


def _broken_desired(state: Path, promised: Promises) -> str | None:
    path = state / "desired.json"
    if not path.exists():
        return "desired.json is missing" if promised.told else None
    try:
        revision = messages.decode("desired", path.read_bytes()).revision
    except EvenfleetError as error:
        return f"desired.json is damaged: {error}"
    return None if promised.told <= revision <= promised.telling else f"desired.json has revision {revision}"


def _broken_slots(state: Path, promised: Promises, releases: Sequence[str]) -> str | None:
    slots = Slots(state / "slots")
    allowed: list[str | None] = [None, *releases][promised.switched : promised.switching + 1]
    found = slots.release()
    if (found[1] if found else None) not in allowed:
        return f"the slots run {found and found[1][:8]} after switch {promised.switched}"
    current = slots.current()
    if found and current:
        wanted = [found[0].golden.inputs, found[0].golden.labels, found[0].golden.outputs]
        wanted += [variant.artifact for variant in found[0].variants]
        try:
            for reference in wanted:
                manifests.check_file(current / reference.file, reference)
        except EvenfleetError as error:
            return f"the release that runs is not whole: {error}"
    return None


def first_broken(
    recording: Recording,
    calls: Sequence[Call],
    tmp_path: Path,
    mercies: Sequence[Mercy],
    *,
    every: int = 1,
    start: int = 0,
    synced: bool = True,
) -> str | None:
    numbers = count()
    found = power.cuts(
        calls,
        recording.root,
        lambda: tmp_path / f"cut-{next(numbers)}",
        mercies,
        random.Random(0),
        every=every,
        start=start,
    )
    for left, marks in found:
        trouble = broken(left, marks, recording.releases, synced=synced)
        shutil.rmtree(left)
        if trouble:
            return trouble
    return None


def sites(recording: Recording) -> dict[str, list[int]]:
    """Return which calls bring what to disk: by what of ours asked for it, or that SQLite did so by itself."""
    found: dict[str, list[int]] = {}
    names: dict[int, str] = {}
    for index, call in enumerate(recording.calls):
        before = recording.calls[index - 1]
        if call.what in "cm":
            names[call.inode] = call.fields[0]
        elif call.what == "r":
            names = {inode: call.fields[1] if name == call.fields[0] else name for inode, name in names.items()}
        elif call.what == "s":
            found.setdefault(f"content of {_kind(names[call.inode])}", []).append(index)
        elif call.what == "d":
            of = _kind(before.fields[1]) if before.what == "r" else "SQLite's own"
            found.setdefault(f"name of {'state_dir' if call.inode not in names else of}", []).append(index)
    return found


def _kind(path: str) -> str:
    parts = Path(path).parts
    if "golden" in parts or "artifacts" in parts:
        return "a fetched file"
    return parts[-1].partition(".new")[0].partition(".part")[0]


# What a cut cannot break by itself: SQLite syncs these too, on the way to a promise that `outbox.sqlite-wal` stands for.
OF_SQLITE = {"content of outbox.sqlite-journal", "content of outbox.sqlite", "name of SQLite's own"}
OURS = {
    "content of outbox.sqlite-wal",
    "content of incarnation",
    "name of incarnation",
    "content of desired.json",
    "name of desired.json",
    "content of a fetched file",
    "name of a fetched file",
    "content of manifest.json",
    "name of manifest.json",
    "name of current",
    "name of state_dir",
}


@pytest.mark.parametrize("mercy", ["chance", "nothing", "names", "content", "all"])
def test_whatever_a_power_cut_takes_what_was_promised_is_there(
    recording: Recording, tmp_path: Path, mercy: Mercy
) -> None:
    assert first_broken(recording, recording.calls, tmp_path, [mercy], every=1 if mercy == "chance" else 3) is None


@pytest.mark.parametrize("site", sorted(OURS))
def test_without_any_one_of_our_syncs_a_promise_is_broken(recording: Recording, tmp_path: Path, site: str) -> None:
    left_out = sites(recording)[site]
    calls = [call for index, call in enumerate(recording.calls) if index not in left_out]

    assert first_broken(recording, calls, tmp_path, ["nothing", "names"], start=left_out[0]) is not None


def test_each_sync_is_one_of_ours_that_is_tried_or_sqlites_own(recording: Recording) -> None:
    assert set(sites(recording)) == OURS | OF_SQLITE


def test_synced_now_and_then_a_cut_takes_messages_and_no_number_is_used_twice(recorder: Path, tmp_path: Path) -> None:
    """What was published and lost had a number of a life that is over: the next one is another."""
    recording = record(tmp_path, recorder, "1000")

    assert first_broken(recording, recording.calls, tmp_path, ["chance", "nothing"], every=2, synced=False) is None
    assert "messages are missing" in str(first_broken(recording, recording.calls, tmp_path, ["nothing"], every=2))
    always, now_and_then = "content of outbox.sqlite-wal", len(sites(recording)["content of outbox.sqlite-wal"])
    assert now_and_then < 30, always
