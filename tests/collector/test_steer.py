"""Desired rows follow assignments, classes and policies; the store is the real one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from evenfleet_collector.cell import ClassBaseline, ClassKey, MetricBaseline
from evenfleet_collector.steer import Steer
from evenfleet_collector.store.sqlite import FILE_NAME, SqliteWriter, open_reader, open_writer
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import manifest as manifests
from evenfleet_shared.messages import Desired, Limit, ReleaseSignature
from evenfleet_shared.signature import PrivateKey
from fakes import uplink
from fakes.stores import small_manifest
from fakes.uplink import DEVICE, state

NOW_S = 1.7e9
MANIFEST, _ = small_manifest("float32", "int8")
PAYLOAD = manifests.encode(MANIFEST)
RELEASE = manifests.digest(PAYLOAD)


@dataclass
class Steered:
    writer: SqliteWriter
    steer: Steer

    def desired(self, device: str = DEVICE) -> Desired | None:
        with self.writer.transaction() as tx:
            return tx.desired(device)

    def assign(self, device: str, release: str | None) -> None:
        with self.writer.transaction() as tx:
            tx.put_assignment(device, release, NOW_S)


@pytest.fixture
def steered(tmp_path: Path) -> Iterator[Steered]:
    writer = open_writer(tmp_path)
    with writer.transaction() as tx:
        tx.put_release(RELEASE, PAYLOAD, MANIFEST.model, NOW_S)
        tx.put_state(state(), NOW_S)
        tx.put_state(state(device="press-02"), NOW_S)
        tx.see_device("never-born", NOW_S)
    yield Steered(writer, Steer(writer, "http://127.0.0.1:8080/api/v1/artifacts"))
    writer.close()


def test_every_device_that_was_born_is_told_once(steered: Steered) -> None:
    steered.assign("*", RELEASE)

    assert steered.steer.step(NOW_S) == 2
    assert steered.steer.step(NOW_S) == 0
    told = steered.desired()
    assert told is not None
    assert told.release == RELEASE
    assert steered.desired("never-born") is None


def test_a_devices_own_assignment_goes_before_that_of_all(steered: Steered) -> None:
    steered.assign("*", RELEASE)
    steered.assign("press-02", None)
    steered.steer.step(NOW_S)

    own, of_all = steered.desired("press-02"), steered.desired()
    assert own is not None
    assert of_all is not None
    assert (own.release, of_all.release) == (None, RELEASE)


def test_a_release_that_the_collector_does_not_have_is_not_told(steered: Steered) -> None:
    steered.assign("*", "f" * 64)
    steered.steer.step(NOW_S)

    told = steered.desired()
    assert told is not None
    assert (told.release, told.variants) == (None, ())


def test_a_class_that_gets_its_limits_is_told_and_another_is_not(steered: Steered) -> None:
    steered.assign("*", RELEASE)
    with steered.writer.transaction() as tx:
        tx.put_state(state(device="press-02", device_class="another"), NOW_S)
    steered.steer.step(NOW_S)
    baseline = ClassBaseline(
        revision=1, run=uplink.RUN, latency=MetricBaseline(value=1.0, limit=1.1), memory=None, devices=1
    )
    with steered.writer.transaction() as tx:
        tx.put_class_baseline(ClassKey(RELEASE, "int8", "bench-x86"), baseline)

    assert steered.steer.step(NOW_S) == 1
    told = steered.desired()
    assert told is not None
    assert [variant.limits for variant in told.variants] == [(), (Limit(limit_ms=1.1, revision=1),)]
    assert told.revision == 2


def test_a_new_window_length_is_told_to_all(steered: Steered) -> None:
    steered.steer.step(NOW_S)
    with steered.writer.transaction() as tx:
        tx.put_policy(Policy(revision=2, window_length_s=60.0), NOW_S)

    assert steered.steer.step(NOW_S) == 2


def test_a_device_from_before_this_database_is_told_above_what_it_knows(steered: Steered) -> None:
    with steered.writer.transaction() as tx:
        tx.put_state(state(desired_revision=41), NOW_S)
    steered.steer.step(NOW_S)

    told = steered.desired()
    assert told is not None
    assert told.revision == 42
    assert steered.steer.step(NOW_S) == 0


def test_a_device_that_can_run_nothing_is_told_to_run_nothing(steered: Steered) -> None:
    steered.assign("*", RELEASE)
    with steered.writer.transaction() as tx:
        tx.put_state(state(formats=()), NOW_S)
    steered.steer.step(NOW_S)

    told = steered.desired()
    assert told is not None
    assert told.variants == ()


def test_what_a_device_is_to_run_is_shown_before_anything_comes_of_it(steered: Steered, tmp_path: Path) -> None:
    with steered.writer.transaction() as tx:
        tx.put_assignment("press-02", RELEASE, NOW_S)
    steered.steer.step(NOW_S)

    rows = open_reader(tmp_path).cells()
    assert {(row.device, row.variant, row.verdict) for row in rows} == {
        ("press-02", variant.name, "undetermined") for variant in MANIFEST.variants
    }


def test_a_device_that_cannot_be_steered_keeps_no_other_from_it(steered: Steered, tmp_path: Path) -> None:
    """The row that one device was last told is damaged, as by a disk."""
    steered.steer.step(NOW_S)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE desired SET body = 'damaged' WHERE device = 'press-01'")
    with steered.writer.transaction() as tx:
        tx.put_assignment("*", RELEASE, NOW_S)

    assert steered.steer.step(NOW_S) == 1
    with steered.writer.transaction() as tx:
        told = tx.desired("press-02")
        assert told is not None
        assert told.release == RELEASE
    assert open_reader(tmp_path).stats().passed_over["steering-failed"] == 1


def test_a_signature_that_is_pushed_later_is_told_anew_and_again_when_it_is_replaced(steered: Steered) -> None:
    steered.assign("*", RELEASE)
    steered.steer.step(NOW_S)
    signature = PrivateKey(bytes(32)).sign(RELEASE)
    for text in ("A" * 86 + "==", signature.signature):
        with steered.writer.transaction() as tx:
            tx.put_signature(replace(signature, signature=text), NOW_S)

        assert steered.steer.step(NOW_S) == 2
        told = steered.desired()
        assert told is not None
        assert told.signatures == (ReleaseSignature(key=signature.key, signature=text),)
    assert told.revision == 3
    assert steered.steer.step(NOW_S) == 0


def test_a_signature_of_another_release_is_not_told(steered: Steered) -> None:
    steered.assign("*", RELEASE)
    steered.steer.step(NOW_S)
    with steered.writer.transaction() as tx:
        tx.put_signature(PrivateKey(bytes(32)).sign("e" * 64), NOW_S)

    assert steered.steer.step(NOW_S) == 0
