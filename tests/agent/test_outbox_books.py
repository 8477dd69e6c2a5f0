"""The books of the outbox over any history: each number is held, let go of by a receipt, or in the ledger, and once.

And nothing is counted twice: no summary overlaps a window that was published, and each window that gave way to a summary
is in exactly one of them.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenfleet_agent.outbox import FILE_NAME, Entry, Outbox, open_outbox
from evenfleet_agent.sending import Key
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation, IncarnationReceipt, Numbered, Receipt, Summary, Window
from fakes import uplink
from fakes.uplink import DEVICE

MAX_BYTES = 24_000
MAX_AGE_S = 40_000.0


@dataclass
class Books:
    """What the files say, read past the outbox: sizes of what is held, reasons of what was given up."""

    held: dict[Key, int] = field(default_factory=dict)
    ledger: dict[Key, str] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path, seen: dict[Key, Numbered]) -> Books:
        """Read them; messages that are new are added to `seen`."""
        books = cls()
        with closing(sqlite3.connect(directory / FILE_NAME)) as db:
            for counter, word, seq, size in db.execute("SELECT counter, random, seq, length(payload) FROM messages"):
                books.held[counter, word, seq] = size
            for key in books.held.keys() - seen.keys():
                kind, payload = db.execute(
                    "SELECT kind, payload FROM messages WHERE counter = ? AND random = ? AND seq = ?", key
                ).fetchone()
                seen[key] = messages.decode(kind, payload)
            for counter, word, first, last, reason in db.execute(
                "SELECT counter, random, first, last, reason FROM ledger"
            ):
                for seq in range(first, last + 1):
                    assert (counter, word, seq) not in books.ledger
                    books.ledger[counter, word, seq] = reason
        return books


class History(RuleBasedStateMachine):
    """A device that measures, loses its network and its power, and a collector that takes what arrives."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="evenfleet-books-"))
        self.words = count(1)
        self.boot = 0
        self.now_s = 0.0
        self.online = False
        self.last_seqs: dict[Incarnation, int] = {}
        self.seen: dict[Key, Numbered] = {}
        self.arrived: dict[Key, Numbered] = {}
        self.let_go: set[Key] = set()
        self.before = Books()
        self.open()

    def open(self) -> None:
        self.outbox: Outbox = open_outbox(
            self.directory,
            boot=f"boot-{self.boot}",
            new_random=lambda: f"{next(self.words):08x}",
            max_bytes=MAX_BYTES,
            jitter=lambda: 1.0,
            max_age_s=MAX_AGE_S,
            backfill_per_s=1000.0,
            uptime_s=lambda: self.now_s,
            wall_s=lambda: 0.0,
        )
        self.outbox._db.execute("PRAGMA synchronous=OFF")
        if self.online:
            self.outbox.reconnected()

    @rule(windows=st.integers(1, 40), variants=st.sampled_from([("float32",), ("float32", "int8")]))
    def measure(self, windows: int, variants: tuple[str, ...]) -> None:
        for number in range(windows):
            self.now_s += 30.0
            self.outbox.append("window", self.window(variants[number % len(variants)]))
            self.check()

    def window(self, variant: str) -> Callable[[Incarnation, int, int], Numbered]:
        def make(incarnation: Incarnation, seq: int, floor: int) -> Numbered:
            assert seq == self.last_seqs.get(incarnation, 0) + 1
            return uplink.window(seq, incarnation=incarnation, variant=variant)

        return make

    @rule()
    def something_happens(self) -> None:
        self.outbox.append("event", lambda life, seq, floor: uplink.event(seq, incarnation=life, floor=floor))

    @rule()
    def context_is_told(self) -> None:
        self.outbox.append("context", lambda life, seq, floor: uplink.context(seq, incarnation=life, floor=floor))

    @rule(online=st.booleans())
    def network_changes(self, online: bool) -> None:
        self.online = online
        if online:
            self.outbox.reconnected()
        else:
            self.outbox.disconnected()

    @rule(before=st.integers(1, 20), limit=st.integers(1, 20), live=st.booleans(), after=st.integers(1, 40))
    def network_comes_and_goes(self, before: int, limit: int, live: bool, after: int) -> None:
        """Some of what waits goes out before there is no network again, perhaps with a window measured in between."""
        self.network_changes(online=False)
        self.measure(before, ("float32",))
        self.network_changes(online=True)
        if live:
            self.measure(1, ("float32",))
        self.send(limit, 1.0)
        self.network_changes(online=False)
        self.measure(after, ("float32",))

    @rule(limit=st.integers(1, 30), share=st.floats(0.0, 1.0))
    def send(self, limit: int, share: float) -> None:
        """Of what goes out some arrives."""
        if not self.online:
            return
        self.now_s += 10.0
        entries = self.outbox.due(self.now_s, limit)
        for index, entry in enumerate(entries):
            self.outbox.sent(entry.key, self.now_s)
            if index < share * len(entries):
                self.arrive(entry)

    def arrive(self, entry: Entry) -> None:
        self.arrived[entry.key] = messages.decode(entry.kind, entry.payload)

    @rule()
    def receipt_comes(self) -> None:
        parts = []
        for life, last in self.last_seqs.items():
            settled = {key[2] for key in (*self.arrived, *self.before.ledger) if key[:2] == life}
            contiguous = next(seq for seq in count(1) if seq not in settled) - 1
            behind = [seq for seq in settled if seq > contiguous]
            gaps = tuple((seq, seq) for seq in range(contiguous + 1, max(behind, default=0)) if seq not in settled)
            assert last >= contiguous
            parts.append(IncarnationReceipt(incarnation=life, contiguous=contiguous, gaps=gaps[:256]))
        counter = self.outbox.incarnation.counter
        self.outbox.settle(Receipt(device=DEVICE, last_counter=counter, incarnations=tuple(parts[-8:])), self.now_s)
        self.check(receipted=True)

    @rule()
    def losses_are_told(self) -> None:
        self.outbox.told(self.outbox.ledger())

    @rule(hours=st.integers(1, 8))
    def time_passes(self, hours: int) -> None:
        self.now_s += 3600.0 * hours
        self.outbox.tend(self.now_s)

    @rule(reboot=st.booleans())
    def restart(self, reboot: bool) -> None:
        self.outbox.close()
        self.boot += reboot
        if reboot:
            self.now_s = 0.0
            self.online = False
        self.open()

    def check(self, *, receipted: bool = False) -> None:
        books = Books.read(self.directory, self.seen)
        life = self.outbox.incarnation
        self.last_seqs[life] = self.outbox.last_seq
        gone = self.before.held.keys() - books.held.keys() - books.ledger.keys()
        assert receipted or not gone
        assert gone <= self.arrived.keys()
        self.let_go |= gone
        given_out = {(*one, seq) for one, last in self.last_seqs.items() for seq in range(1, last + 1)}
        assert given_out == books.held.keys() | books.ledger.keys() | self.let_go
        assert not books.held.keys() & books.ledger.keys()
        assert not self.let_go & (books.held.keys() | books.ledger.keys())
        assert self.outbox.size_bytes == sum(books.held.values())
        assert self.outbox.size_bytes <= MAX_BYTES
        summarised = [key for key, reason in books.ledger.items() if reason == "summarised" and self.is_window(key)]
        final = [
            message
            for key, message in self.seen.items()
            if isinstance(message, Summary) and books.ledger.get(key) != "summarised"
        ]
        assert len(summarised) == sum(message.windows for message in final)
        for message in final:
            self.overlaps_nothing_that_arrived(message)
        self.before = books

    def overlaps_nothing_that_arrived(self, one: Summary) -> None:
        for (counter, word, seq), other in self.arrived.items():
            if isinstance(other, Window) and other.variant == one.variant and (counter, word) == one.summarised:
                assert not one.first_seq <= seq <= one.last_seq

    def is_window(self, key: Key) -> bool:
        return isinstance(self.seen[key], Window)

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "outbox"):
            self.check()

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.outbox.close()
            shutil.rmtree(self.directory)


History.TestCase.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistory = History.TestCase
