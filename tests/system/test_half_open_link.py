"""A connection that is dead without either end being told: noticed, and made good by sending everything once more."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from evenfleet_agent.link import Connected, Disconnected
from evenfleet_agent.outbox import Outbox, open_outbox
from evenfleet_shared import messages
from fakes.cables import cable_to
from fakes.link_ends import DEVICE, Ends, link_to
from fakes.scripted_brokers import ScriptedBroker
from fakes.uplink import window

KEEPALIVE_S = 2


def test_what_was_under_way_on_a_dead_connection_is_sent_again_once(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    outbox = open_outbox(
        tmp_path, boot="boot", new_random=lambda: "0123456789abcdef", max_bytes=1_000_000, jitter=lambda: 1.0
    )
    outbox.reconnected()  # what is measured from now on is not backfill, which has a pace of its own
    for _ in range(20):
        outbox.append("window", lambda life, seq, floor: window(seq, device=DEVICE, incarnation=life, floor=floor))
    with (
        cable_to(f"tcp://127.0.0.1:{broker.address[1]}") as cable,
        link_to(("127.0.0.1", int(cable.url.rpartition(":")[2])), keepalive_s=KEEPALIVE_S, directory=tmp_path) as ends,
    ):
        ends.until(Connected)
        broker.until(lambda: broker.pings == 1)
        cable.dead, dead_s = True, time.monotonic()
        send(ends, outbox)

        ends.until(Disconnected)
        assert time.monotonic() - dead_s <= 1.5 * KEEPALIVE_S + 0.5
        assert ends.link.network().unacknowledged_ratio == 1.0
        assert broker.sent == []

        cable.dead = False
        ends.until(Connected)
        outbox.reconnected()
        send(ends, outbox)
        broker.until(lambda: len(broker.sent) >= 20)
        threading.Event().wait(0.5)  # for what should not come
    numbers = [messages.decode("window", sent.payload).seq for sent in broker.sent if sent.topic.endswith("window")]
    assert numbers == list(range(1, 21))
    broker.close()


def send(ends: Ends, outbox: Outbox) -> None:
    """Hand over what is due, as the agent does."""
    while entries := outbox.due(time.monotonic(), 50):
        for entry in entries:
            assert ends.link.publish(entry.kind, entry.payload)
            outbox.sent(entry.key, time.monotonic())
