"""A device's disk work without the rest of it, for the recorder: `power_device ROOT FSYNC URL RELEASE... -- VARIANT...`.

FSYNC is seconds between syncs of the outbox, or `always`.

Marks before and after each step what was begun and what is promised from then on.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

from evenfleet_agent.fetch import fetch_release
from evenfleet_agent.outbox import Outbox, open_outbox
from evenfleet_agent.slots import Slots
from evenfleet_shared import messages
from evenfleet_shared.disk import write_whole
from evenfleet_shared.messages import Desired, Event, Incarnation, IncarnationReceipt, Receipt

DEVICE = "press-01"


def event(incarnation: Incarnation, seq: int, floor: int) -> Event:
    return Event(
        device=DEVICE,
        incarnation=incarnation,
        seq=seq,
        floor=floor,
        event="runner-failed",
        happened_uptime_s=1.0,
        happened_wall_s=1.0,
        detail="x" * 400,
    )


def desired(revision: int) -> Desired:
    return Desired(
        device=DEVICE, revision=revision, release=None, artifacts_url="http://127.0.0.1", window_length_s=300.0
    )


def main(root: Path, interval_s: float | None, url: str, releases: list[str], variants: list[str]) -> None:
    words = (f"{number:08x}" for number in count(1))
    marks = os.open(root / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def mark(*said: object) -> None:
        os.write(marks, (" ".join(map(str, said)) + "\n").encode())

    def opened(boot: int) -> Outbox:
        outbox = open_outbox(
            root / "state",
            boot=f"boot-{boot}",
            new_random=lambda: next(words),
            max_bytes=1 << 20,
            jitter=lambda: 1.0,
            fsync_interval_s=interval_s,
        )
        mark("life", *outbox.incarnation)
        return outbox

    def append(outbox: Outbox, number: int) -> None:
        for _ in range(number):
            mark("appended", *outbox.incarnation, outbox.append("event", event))

    for boot, release in enumerate(releases, start=1):
        outbox = opened(boot)
        slots = Slots(root / "state" / "slots")
        append(outbox, 3)
        mark("telling", boot)
        write_whole(root / "state" / "desired.json", messages.encode(desired(boot)))
        mark("told", boot)
        fetch_release(url, release, variants, slots.idle())
        append(outbox, 1)
        mark("switching", boot)
        slots.switch()
        mark("switched", boot)
        mark("settling", *outbox.incarnation, 2)
        part = IncarnationReceipt(incarnation=outbox.incarnation, contiguous=2)
        outbox.settle(Receipt(device=DEVICE, last_counter=outbox.incarnation.counter, incarnations=(part,)), 0.0)
        append(outbox, 2)
        if boot % 2:
            # The collector knows a later life than this device, which begins another one beyond.
            outbox.settle(Receipt(device=DEVICE, last_counter=outbox.incarnation.counter + 3), 0.0)
            mark("life", *outbox.incarnation)
            append(outbox, 1)
            outbox.close()


if __name__ == "__main__":
    split = sys.argv.index("--")
    fsync = sys.argv[2]
    main(
        Path(sys.argv[1]),
        None if fsync == "always" else float(fsync),
        sys.argv[3],
        sys.argv[4:split],
        sys.argv[split + 1 :],
    )
