"""What a device is told, and when it is told anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evenfleet_collector import desired
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import messages
from evenfleet_shared.messages import Desired, Limit, ReleaseSignature
from evenfleet_shared.signature import PrivateKey
from fakes.stores import small_manifest

MANIFEST, _ = small_manifest("float32", "int8")
RELEASE = "a" * 64
URL = "http://collector:8080/api/v1/artifacts"
LIMIT = Limit(limit_ms=1.1, revision=1)


def compose(before: Desired | None = None, **changes: Any) -> Desired | None:
    given: dict[str, Any] = {
        "device": "press-01",
        "formats": ("tflite",),
        "release": (RELEASE, MANIFEST),
        "limits": {"int8": (LIMIT,)},
        "policy": Policy(window_length_s=300.0),
        "artifacts_url": URL,
        "before": before,
    }
    return desired.compose(**(given | changes))


def told(before: Desired | None = None, **changes: Any) -> Desired:
    found = compose(before, **changes)
    assert found is not None
    return found


def test_the_first_word_is_revision_1_and_holds_everything() -> None:
    first = told()

    assert (first.revision, first.release, first.window_length_s, first.artifacts_url) == (1, RELEASE, 300.0, URL)
    assert [(variant.name, variant.limits) for variant in first.variants] == [("float32", ()), ("int8", (LIMIT,))]


def test_what_was_told_is_not_told_again() -> None:
    assert compose(told()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"release": ("b" * 64, MANIFEST)},
        {"release": None},
        {"limits": {}},
        {"limits": {"int8": (replace(LIMIT, revision=2),)}},
        {"policy": Policy(window_length_s=60.0)},
        {"artifacts_url": "http://elsewhere:8080"},
        {"formats": ("saved_model",)},
        {"signatures": (PrivateKey(bytes(32)).sign(RELEASE),)},
    ],
)
def test_whatever_changes_is_a_new_revision(changes: dict[str, Any]) -> None:
    second = told(told(), **changes)

    assert second.revision == 2
    assert compose(second, **changes) is None


def test_a_device_is_told_to_run_only_what_its_runtime_can_load() -> None:
    assert told(formats=("saved_model",)).variants == ()
    assert told(formats=()).variants == ()


def test_nothing_assigned_is_nothing_to_run() -> None:
    nothing = told(release=None)

    assert (nothing.release, nothing.variants) == (None, ())


@pytest.mark.parametrize("before", [None, 3])
def test_a_device_that_has_a_later_revision_than_the_collector_knows_is_told_a_later_one_yet(
    before: int | None,
) -> None:
    """The collector's database is new, or an old backup: the device would ignore what is not above its own."""
    known = replace(told(), revision=before) if before else None
    again = told(known, known_revision=7)

    assert again.revision == 8
    assert compose(again, known_revision=7) is None


def test_a_device_with_an_older_revision_is_told_nothing_new() -> None:
    assert compose(replace(told(), revision=5), known_revision=4) is None


@pytest.mark.parametrize("absurd", [2**53, 2**53 - 1, 2**52])
def test_an_absurd_revision_never_makes_one_that_no_message_can_hold(absurd: int) -> None:
    before = told(known_revision=absurd)
    for length_s in (1.0, 2.0, 3.0):
        before = told(before, known_revision=absurd, policy=Policy(window_length_s=length_s, min_windows=3))

    assert messages.decode("desired", messages.encode(before)) == before


def test_signatures_are_told_by_key_so_that_their_order_is_no_news() -> None:
    made = [PrivateKey(bytes([number]) * 32).sign(RELEASE) for number in range(3)]
    first = told(signatures=made)

    assert first.signatures == tuple(
        ReleaseSignature(key=one.key, signature=one.signature) for one in sorted(made, key=lambda one: one.key)
    )
    assert compose(first, signatures=made[::-1]) is None


def test_more_signatures_than_a_message_holds_still_make_a_message() -> None:
    made = [PrivateKey(bytes([number]) * 32).sign(RELEASE) for number in range(desired.MAX_SIGNATURES + 3)]

    assert (
        messages.decode("desired", messages.encode(told(signatures=made))).signatures
        == told(signatures=made[::-1]).signatures
    )


def test_nothing_assigned_has_no_signatures() -> None:
    assert told(release=None, signatures=(PrivateKey(bytes(32)).sign(RELEASE),)).signatures == ()
