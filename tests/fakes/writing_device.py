"""A device that writes windows to its outbox, sends them and hears receipts, until it is killed.

Says a line `r counter random seq` when a window has been written, and `d counter random seq windows first last counter
random` for each message that it sends: the last five are of what a summary stands for; first is 0 for a window.
"""

from __future__ import annotations

import secrets
import time
from multiprocessing.connection import Connection
from pathlib import Path

from evenfleet_agent.outbox import open_outbox
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation, Numbered, Summary
from fakes import uplink


def run(directory: Path, boot: str, max_bytes: int, collector: Connection) -> None:
    outbox = open_outbox(
        directory,
        boot=boot,
        new_random=lambda: secrets.token_hex(4),
        max_bytes=max_bytes,
        jitter=lambda: 1.0,
        backfill_per_s=1e6,
    )
    turn = 0
    while True:
        turn += 1
        seq = outbox.append("window", _window)
        _say(collector, "r", *outbox.incarnation, seq)
        if turn % 8 == 4:
            outbox.disconnected()
        elif turn % 8 == 0:
            outbox.reconnected()
            for entry in outbox.due(time.monotonic(), 4):
                message = messages.decode(entry.kind, entry.payload)
                if isinstance(message, Summary):
                    stands_for = (message.windows, message.first_seq, message.last_seq, *message.summarised)
                else:
                    stands_for = (1, 0, 0, *message.incarnation)
                _say(collector, "d", *entry.key, *stands_for)
                outbox.sent(entry.key, time.monotonic())
        while collector.poll():
            outbox.settle(messages.decode("receipt", collector.recv_bytes()), time.monotonic())


def _window(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
    return uplink.window(seq, incarnation=incarnation, floor=floor)


def _say(collector: Connection, *words: object) -> None:
    collector.send_bytes(" ".join(map(str, words)).encode())
