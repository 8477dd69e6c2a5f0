"""What people change over HTTP, on a real store and a real folder."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from evenfleet_collector import access
from evenfleet_collector.artifacts import ArtifactFolder
from evenfleet_collector.cell import Cell, ClassKey
from evenfleet_collector.desired import MAX_SIGNATURES
from evenfleet_collector.edits import MAX_WAITING, StoreEdits
from evenfleet_collector.resources import NewCommand
from evenfleet_collector.store.sqlite import SqliteReader, SqliteWriter, open_reader, open_writer
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import ArtifactError, RefusedError, ReleaseError
from evenfleet_shared.signature import PrivateKey
from fakes.stores import cell_row, small_manifest

T = TypeVar("T")

MANIFEST, FILES = small_manifest()
PAYLOAD = manifests.encode(MANIFEST)
RELEASE = manifests.digest(PAYLOAD)


@dataclass
class Desk:
    writer: SqliteWriter
    reader: SqliteReader
    artifacts: ArtifactFolder
    edits: StoreEdits
    changes: list[None]

    def do(self, edit: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(edit)

    def push(self) -> None:
        for payload in FILES.values():
            self.artifacts.add(payload)
        self.do(self.edits.add_release(PAYLOAD))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    artifacts = ArtifactFolder(tmp_path / "artifacts")
    changes: list[None] = []
    writer = open_writer(tmp_path)
    with ThreadPoolExecutor(1) as thread:
        edits = StoreEdits(writer, thread, artifacts, lambda: changes.append(None))
        yield Desk(writer, open_reader(tmp_path), artifacts, edits, changes)
    writer.close()


def test_an_enrolled_device_has_a_token_that_only_its_hash_is_kept_of(desk: Desk) -> None:
    token = desk.do(desk.edits.enrol("press-01"))

    kept = desk.reader.credential("press-01")
    assert kept is not None
    assert token not in kept
    assert access.verify_token(token, kept)


def test_a_second_enrolment_is_refused_and_the_first_token_stays(desk: Desk) -> None:
    token = desk.do(desk.edits.enrol("press-01"))

    with pytest.raises(RefusedError, match="press-01 is enrolled already"):
        desk.do(desk.edits.enrol("press-01"))

    kept = desk.reader.credential("press-01")
    assert kept is not None
    assert access.verify_token(token, kept)


def test_a_release_is_kept_once_all_its_artifacts_are_here(desk: Desk) -> None:
    with pytest.raises(ArtifactError, match=r"5 of 5 artifacts are not here yet.*upload them"):
        desk.do(desk.edits.add_release(PAYLOAD))
    assert desk.reader.releases() == []

    desk.push()

    (row,) = desk.reader.releases()
    assert (row.release, row.manifest) == (RELEASE, MANIFEST)
    manifest = desk.artifacts.find(RELEASE)
    assert manifest is not None
    assert manifest.read_bytes() == PAYLOAD


def test_a_release_that_is_pushed_again_is_there_once(desk: Desk) -> None:
    desk.push()
    desk.push()

    assert len(desk.reader.releases()) == 1


def test_a_release_has_signatures_of_only_so_many_keys(desk: Desk) -> None:
    desk.push()
    made = [PrivateKey(bytes([number]) * 32).sign(RELEASE) for number in range(MAX_SIGNATURES + 1)]
    for signature in made[:-1]:
        desk.do(desk.edits.sign(signature))
    with pytest.raises(RefusedError, match=f"signatures by {MAX_SIGNATURES} keys already"):
        desk.do(desk.edits.sign(made[-1]))
    desk.do(desk.edits.sign(made[0]))

    (row,) = desk.reader.releases()
    assert len(row.signatures) == MAX_SIGNATURES


def test_a_tag_is_given_moved_and_taken_away(desk: Desk) -> None:
    desk.push()
    desk.do(desk.edits.tag("prod", RELEASE))
    (row,) = desk.reader.releases()
    assert row.tags == ("prod",)
    desk.do(desk.edits.untag("prod"))
    assert desk.reader.tags() == []
    assert desk.changes == []


def test_bytes_that_are_no_manifest_are_refused(desk: Desk) -> None:
    with pytest.raises(ReleaseError, match="not a release manifest"):
        desk.do(desk.edits.add_release(b"{}"))


def test_an_assignment_to_a_device_nobody_knows_is_refused(desk: Desk) -> None:
    with pytest.raises(RefusedError, match="not known; enrol it first"):
        desk.do(desk.edits.assign("press-01", RELEASE))

    assert desk.reader.assignments() == {}
    assert desk.changes == []


def test_an_assignment_is_kept_and_told_of(desk: Desk) -> None:
    desk.do(desk.edits.enrol("press-01"))
    desk.do(desk.edits.assign("press-01", RELEASE))
    desk.do(desk.edits.assign("*", None))

    assert desk.reader.assignments() == {"press-01": RELEASE, "*": None}
    assert len(desk.changes) == 2


def test_a_policy_gets_the_next_revision_whatever_it_says(desk: Desk) -> None:
    desk.do(desk.edits.set_policy(Policy(revision=900, min_windows=4)))
    desk.do(desk.edits.set_policy(Policy(min_windows=5)))

    assert desk.reader.policy() == Policy(revision=3, min_windows=5)


def test_a_policy_shares_its_budget_among_the_streams_there_are(desk: Desk) -> None:
    with desk.writer.transaction() as tx:
        for number in range(40):
            tx.put_cell(
                Cell(device=f"d{number}", key=ClassKey(RELEASE, "float32", "bench-x86")),
                cell_row(f"d{number}", "float32", RELEASE),
            )
    desk.do(desk.edits.set_policy(Policy()))

    assert desk.reader.policy() == replace(Policy(), revision=2, streams=128)


def test_edits_at_the_same_time_are_done_one_after_another(desk: Desk) -> None:
    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(desk.edits.enrol(f"press-{number}") for number in range(20)))

    assert len(set(desk.do(all_at_once()))) == 20
    assert len(desk.reader.devices()) == 20


def test_a_command_waits_to_be_sent_and_wakes_who_sends(desk: Desk) -> None:
    desk.do(desk.edits.enrol("press-01"))
    before = len(desk.changes)
    correlation_id = desk.do(desk.edits.order("press-01", NewCommand(command="measure", variant="int8", ttl_s=60.0)))

    row = desk.reader.command("press-01", correlation_id)
    assert row is not None
    assert (row.command, row.variant, row.ttl_s, row.state, row.sends) == ("measure", "int8", 60.0, "waiting", 0)
    assert row.asked_s == row.offered_s
    assert len(desk.changes) == before + 1


def test_a_command_to_a_stranger_is_refused(desk: Desk) -> None:
    with pytest.raises(RefusedError, match="press-01 is not known"):
        desk.do(desk.edits.order("press-01", NewCommand(command="measure", variant=None, ttl_s=60.0)))


def test_only_so_many_commands_wait_for_one_device(desk: Desk) -> None:
    for device in ("press-01", "press-02"):
        desk.do(desk.edits.enrol(device))
    for _ in range(MAX_WAITING):
        desk.do(desk.edits.order("press-01", NewCommand(command="measure", variant=None, ttl_s=60.0)))

    with pytest.raises(RefusedError, match=f"{MAX_WAITING} commands wait for press-01 already"):
        desk.do(desk.edits.order("press-01", NewCommand(command="measure", variant=None, ttl_s=60.0)))
    desk.do(desk.edits.order("press-02", NewCommand(command="measure", variant=None, ttl_s=60.0)))


def test_a_new_signature_is_told_to_devices(desk: Desk) -> None:
    desk.push()
    before = len(desk.changes)
    desk.do(desk.edits.sign(PrivateKey(bytes(32)).sign(RELEASE)))

    assert len(desk.changes) == before + 1
