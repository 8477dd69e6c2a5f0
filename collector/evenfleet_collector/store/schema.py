"""The tables of `fleet.sqlite`, as migrations that sqlite-utils applies in order.

Readable columns stand beside each `body`, which holds the message as JSON: the file can be asked with sqlite-utils,
datasette or DuckDB without this program. Times end in `_s`: seconds since 1970 by the collector's clock.
"""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database, Migrations

migrations = Migrations("evenfleet")

_LIFE: dict[str, Any] = {"device": str, "counter": int, "random": str}
_CELL: dict[str, Any] = {"device": str, "release": str, "variant": str}


@migrations()
def m001_first_tables(db: Database) -> None:
    """Create everything that the first version keeps."""
    _create(
        db,
        "devices",
        {
            "device": str,
            "device_class": str,
            "status": str,
            "session": str,
            "agent_version": str,
            "formats": str,
            "desired_revision": int,
            "first_seen_s": float,
            "last_seen_s": float,
        },
        pk="device",
    )
    _create(db, "credentials", {"device": str, "token_hash": str, "enrolled_s": float}, pk="device")
    _create(
        db,
        "incarnations",
        {**_LIFE, "floor": int, "highest": int, "judged_to": int},
        pk=("device", "counter", "random"),
    )
    _create(db, "settled", {**_LIFE, "first": int, "last": int}, pk=("device", "counter", "random", "first"))
    _create(db, "refusals", {**_LIFE, "seq": int, "reason": str}, pk=("device", "counter", "random", "seq"))
    _create(
        db,
        "losses",
        {**_LIFE, "first": int, "last": int, "reason": str, "noted_s": float},
        pk=("device", "counter", "random", "first"),
    )
    _create(db, "receipts_due", {"device": str, "mark": int}, pk="device")
    _create(
        db,
        "windows",
        {
            "id": int,
            **_LIFE,
            "seq": int,
            "release": str,
            "variant": str,
            "context": str,
            "received_s": float,
            "backfill": int,
            "p50_ms": float,
            "p95_ms": float,
            "n": int,
            "errors": int,
            "golden_n": int,
            "peak_bytes": int,
            "body": bytes,
        },
        pk="id",
    )
    db.table("windows").create_index(["device", "counter", "random", "seq"], unique=True)
    db.table("windows").create_index(["device", "release", "variant", "counter", "seq"])
    db.table("windows").create_index(["received_s"])
    _create(
        db, "skips", {**_LIFE, "first": int, "last": int, "reason": str}, pk=("device", "counter", "random", "first")
    )
    _create(db, "contexts", {"digest": str, "first_seen_s": float, "body": bytes}, pk="digest")
    _create(
        db,
        "device_contexts",
        {**_LIFE, "seq": int, "digest": str, "received_s": float},
        pk=("device", "counter", "random", "seq"),
    )
    _create(
        db,
        "events",
        {
            "id": int,
            **_LIFE,
            "seq": int,
            "event": str,
            "release": str,
            "variant": str,
            "detail": str,
            "received_s": float,
            "body": bytes,
        },
        pk="id",
    )
    db.table("events").create_index(["device", "id"])
    _create(
        db,
        "dead_letters",
        {
            "id": int,
            "received_s": float,
            "topic": str,
            "reason": str,
            "detail": str,
            "size_bytes": int,
            "payload": bytes,
        },
        pk="id",
    )
    _create(db, "tallies", {"name": str, "count": int}, pk="name")
    _create(db, "cursors", {"name": str, "position": int}, pk="name")
    _create(db, "releases", {"release": str, "model": str, "pushed_s": float, "manifest": bytes}, pk="release")
    _create(db, "policies", {"revision": int, "set_s": float, "body": bytes}, pk="revision")
    _create(db, "assignments", {"device": str, "release": str, "assigned_s": float}, pk="device")
    _create(db, "desired", {"device": str, "revision": int, "sent": int, "body": bytes}, pk="device")
    _create(
        db,
        "class_baselines",
        {"release": str, "variant": str, "device_class": str, "body": bytes},
        pk=("release", "variant", "device_class"),
    )
    _create(
        db,
        "cells",
        {
            **_CELL,
            "device_class": str,
            "verdict": str,
            "version": int,
            "updated_s": float,
            "row": bytes,
            "state": bytes,
        },
        pk=("device", "release", "variant"),
    )
    db.table("cells").create_index(["version"])
    db.table("cells").create_index(["release", "variant", "device_class"])
    _create(
        db,
        "flags",
        {
            "id": int,
            **_CELL,
            "device_class": str,
            "metric": str,
            "reason": str,
            "opened_s": float,
            "cleared_s": float,
            "evidence": bytes,
        },
        pk="id",
    )
    db.table("flags").create_index(["device", "release", "variant", "metric"])


@migrations()
def m002_lives_by_when_heard(db: Database) -> None:
    """Number each device's incarnations by when they were heard of last."""
    db.table("incarnations").add_column("heard", int, not_null_default=0)


@migrations()
def m003_cells_by_when_heard(db: Database) -> None:
    """Note when a window of each cell came last, and which cells nothing is waited for from."""
    cells = db.table("cells")
    cells.add_column("heard_s", float)
    cells.add_column("set_aside", int, not_null_default=0)
    db.execute("UPDATE cells SET heard_s = updated_s")
    cells.create_index(["set_aside", "heard_s"])


@migrations()
def m004_dead_letters_by_device(db: Database) -> None:
    """Tell whose dead letters they are, so that each device's can be bounded, and count them apart from the rows."""
    db.table("dead_letters").add_column("device", str, not_null_default="")
    db.table("dead_letters").create_index(["device", "reason"])
    _create(db, "dead_letter_counts", {"reason": str, "count": int}, pk="reason")
    db.execute("INSERT INTO dead_letter_counts SELECT reason, count(*) FROM dead_letters GROUP BY reason")


@migrations()
def m005_signatures_and_tags(db: Database) -> None:
    """Keep who signed a release, the names that people give to releases, and every move of such a name."""
    _create(db, "signatures", {"release": str, "key": str, "added_s": float, "body": bytes}, pk=("release", "key"))
    _create(db, "tags", {"tag": str, "release": str, "tagged_s": float}, pk="tag")
    _create(db, "tag_moves", {"id": int, "tag": str, "release": str, "before": str, "moved_s": float}, pk="id")
    db.table("tags").create_index(["release"])
    db.table("tag_moves").create_index(["tag"])


@migrations()
def m006_commands(db: Database) -> None:
    """Keep what devices are told to do once, until they have answered, and what they answered."""
    _create(
        db,
        "commands",
        {
            "id": int,
            "device": str,
            "correlation_id": str,
            "command": str,
            "variant": str,
            "ttl_s": float,
            "asked_s": float,
            "state": str,
            "offered_s": float,
            "sends": int,
            "sent_s": float,
            "next_s": float,
            "replied_s": float,
            "reply": bytes,
        },
        pk="id",
    )
    db.table("commands").create_index(["device", "correlation_id"], unique=True)
    db.table("commands").create_index(["state", "next_s"])


@migrations()
def m007_lengths_of_windows(db: Database) -> None:
    """Note how long windows are, and each cell's last one: a device that stretches them is missed later."""
    db.table("windows").add_column("length_s", float)
    db.table("cells").add_column("length_s", float)


@migrations()
def m008_summaries_and_dates(db: Database) -> None:
    """Keep what is left of windows that gave way on devices, and when each window was measured."""
    _create(
        db,
        "summaries",
        {
            "id": int,
            **_LIFE,
            "seq": int,
            "release": str,
            "variant": str,
            "summarised_counter": int,
            "summarised_random": str,
            "first": int,
            "last": int,
            "windows": int,
            "received_s": float,
            "body": bytes,
        },
        pk="id",
    )
    db.table("summaries").create_index(["device", "id"])
    db.table("windows").add_column("measured_s", float)
    db.table("windows").add_column("dated", str)
    db.table("incarnations").add_column("booted_s", float)


@migrations()
def m009_windows_of_applications(db: Database) -> None:
    """Keep what applications' own inferences were, apart from the log, which is judged."""
    _create(
        db,
        "app_windows",
        {
            "id": int,
            **_LIFE,
            "seq": int,
            "app": str,
            "model": str,
            "received_s": float,
            "backfill": int,
            "calls": int,
            "p50_ms": float,
            "p95_ms": float,
            "body": bytes,
        },
        pk="id",
    )
    db.table("app_windows").create_index(["device", "counter", "random", "seq"], unique=True)
    db.table("app_windows").create_index(["device", "app", "model"])
    db.table("app_windows").create_index(["received_s"])


@migrations()
def m010_loads_that_are_asked_for(db: Database) -> None:
    """Keep how long a device was to be loaded without a pause, and with batches."""
    db.table("commands").add_column("sustained_s", float, not_null_default=0.0)
    db.table("commands").add_column("offline_s", float, not_null_default=0.0)


@migrations()
def m011_sleep(db: Database) -> None:
    """Note when a device said last that it sleeps: it is missed later."""
    db.table("devices").add_column("slept_s", float)


def _create(db: Database, name: str, columns: dict[str, Any], *, pk: str | tuple[str, ...]) -> None:
    db.table(name).create(columns, pk=pk)
