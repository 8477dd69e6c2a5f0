"""A process that writes to its outbox and hears receipts is killed at random instants, again and again.

No window that was said to be written is lost, and none is counted twice.
"""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evenfleet_agent.outbox import FILE_NAME
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation, IncarnationReceipt, Receipt
from fakes import writing_device
from fakes.uplink import DEVICE

Key = tuple[int, str, int]


@dataclass
class Books:
    """What the device said, and what the collector has: the numbers themselves, and the windows they stand for."""

    written: set[Key] = field(default_factory=set)
    arrived: set[Key] = field(default_factory=set)
    counted: dict[Key, Key] = field(default_factory=dict)  # window: the message that brought it
    summaries: dict[Key, tuple[Incarnation, int, int, int]] = field(default_factory=dict)
    refused: set[Key] = field(default_factory=set)

    def hear(self, line: str) -> bool:
        """Take a line; return whether a receipt is due."""
        what, counter, word, seq, *more = line.split()
        key = (int(counter), word, int(seq))
        if what == "r":
            self.written.add(key)
            return False
        windows, first, last = map(int, more[:3])
        if key in self.arrived:
            return True
        self.arrived.add(key)
        if not first:
            self.counted[key] = key
            for life, low, high, _ in self.summaries.values():
                assert key[:2] != life or not low <= key[2] <= high
        else:
            life = Incarnation(int(more[3]), more[4])
            for window in self.counted:
                assert window[:2] != life or not first <= window[2] <= last
            self.summaries[key] = (life, first, last, windows)
        return True

    def receipt(self, ledger: set[Key]) -> bytes:
        """Return what the collector would say; of what was given up it has been told."""
        lives = sorted({Incarnation(key[0], key[1]) for key in self.arrived})[-8:]
        parts = []
        for life in lives:
            settled = {seq for *of, seq in (*self.arrived, *ledger) if tuple(of) == life}
            contiguous = next(seq for seq in range(1, len(settled) + 2) if seq not in settled) - 1
            parts.append(IncarnationReceipt(incarnation=life, contiguous=contiguous))
        last = max((life.counter for life in lives), default=0)
        return messages.encode(Receipt(device=DEVICE, last_counter=last, incarnations=tuple(parts)))


def files(directory: Path) -> tuple[set[Key], dict[Key, str]]:
    """Return what is held and what was given up, read past the device."""
    with closing(sqlite3.connect(directory / FILE_NAME)) as db:
        held = set(db.execute("SELECT counter, random, seq FROM messages"))
        ledger = {
            (counter, word, seq): reason
            for counter, word, first, last, reason in db.execute(
                "SELECT counter, random, first, last, reason FROM ledger"
            )
            for seq in range(first, last + 1)
        }
    return held, ledger


def live(directory: Path, books: Books, chance: random.Random, boot: int, max_bytes: int, share: float) -> None:
    """Let the device run until it is killed; a share of what arrives is receipted at once."""
    # From a server that has imported everything: two hundred Pythons take minutes to start.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fakes.writing_device"])
    ours, its = processes.Pipe()
    device = processes.Process(target=writing_device.run, args=(directory, f"boot-{boot}", max_bytes, its))
    device.start()
    its.close()
    with ours:
        assert ours.poll(60.0), "the device says nothing"
        until_s = time.monotonic() + chance.uniform(0.0, 0.08)
        ledger = files(directory)[1].keys()
        while ours.poll(max(0.0, until_s - time.monotonic())) and time.monotonic() < until_s:
            if books.hear(ours.recv_bytes().decode()) and chance.random() < share:
                ours.send_bytes(books.receipt(set(ledger)))
        assert device.exitcode is None, "the device ended by itself"
        device.kill()
        device.join()
        # A message that it had not read resets the connection: what was said last may be gone, and then was not said.
        with suppress(EOFError, ConnectionResetError):
            while True:
                books.hear(ours.recv_bytes().decode())


@pytest.mark.parametrize(
    ("kills", "max_bytes", "share"),
    [
        (20, 1 << 22, 0.7),
        (20, 30_000, 0.1),
        pytest.param(200, 1 << 22, 0.7, marks=pytest.mark.slow),
        pytest.param(200, 30_000, 0.1, marks=pytest.mark.slow),
    ],
)
def test_no_window_that_was_said_to_be_written_is_lost_and_none_counts_twice(
    tmp_path: Path, kills: int, max_bytes: int, share: float
) -> None:
    chance = random.Random(kills)
    books = Books()
    boot = 0
    for _ in range(kills):
        live(tmp_path, books, chance, boot, max_bytes, share)
        boot += chance.random() < 0.2
        held, ledger = files(tmp_path)
        assert books.written <= held | ledger.keys() | books.arrived
        assert not held & ledger.keys()

    assert len(books.written) > kills
    assert books.arrived
    reasons = set(files(tmp_path)[1].values())
    assert "summarised" in reasons if max_bytes == 30_000 else not reasons
