"""The whole loop in one seeded process: real rules and shells, a fake clock, a fake broker, disks that can crash.

Real: supervisors with their outboxes and slots, ingest, judge, steer and outgoing over the SQLite store, every rule.
Fake: the clock, the broker (`fakes.links`), the runners (`fakes.runners`), the download (a copy), power.

A crash strikes at one statement to a database, chosen in advance: the statement is not carried out, the process that
sent it is gone, and whatever it had not committed with it.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenfleet_agent import outbox as outboxes
from evenfleet_agent import standing as standings
from evenfleet_agent.config import AgentSettings
from evenfleet_agent.fetcher import FetchOrder, FetchResult
from evenfleet_agent.link import Connected, Disconnected, LinkEvent, Received
from evenfleet_agent.lives import COUNTER_NAME, CounterFile
from evenfleet_agent.outbox import Outbox
from evenfleet_agent.slots import Slots
from evenfleet_agent.standing import StandingFile
from evenfleet_agent.supervisor import Supervisor
from evenfleet_collector import outgoing
from evenfleet_collector.ingest import Arrival, Ingest
from evenfleet_collector.judge import Judge
from evenfleet_collector.link import Message
from evenfleet_collector.steer import Steer
from evenfleet_collector.store.sqlite import FILE_NAME, SqliteReader, SqliteWriter
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import manifest, topics
from evenfleet_shared.errors import UnreachableError
from evenfleet_shared.messages import Network
from fakes.links import FakeBroker
from fakes.machines import FakeMachine
from fakes.runners import Bench, refused, steady
from fakes.runners import loaded as load_answer

Numbered = tuple[str, int, str, int]

POLICY = Policy(window_length_s=10.0, burn_in_windows=3, calibration_windows=3, revision=2)


class CrashError(BaseException):
    """Power is gone. No `except Exception` of ours may survive it."""


class Fuse:
    """Counts statements down to a crash."""

    def __init__(self) -> None:
        self.left: int | None = None

    def arm(self, statements: int) -> None:
        self.left = statements

    def disarm(self) -> None:
        self.left = None

    def burn(self) -> None:
        if self.left is None:
            return
        if self.left <= 0:
            raise CrashError
        self.left -= 1


def connect(path: Path, fuse: Fuse) -> sqlite3.Connection:
    """Open a database whose every statement goes through the fuse. Not synced: power is fake here, speed is not."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if not sql.startswith("PRAGMA"):
                fuse.burn()
            return super().execute("PRAGMA synchronous=OFF" if "synchronous" in sql else sql, *values)

        def executemany(self, sql: str, values: Any) -> sqlite3.Cursor:
            fuse.burn()
            return super().executemany(sql, values)

    return sqlite3.connect(path, isolation_level=None, factory=Connection)


@dataclass
class World:
    """Time, the broker, the collector and the devices; everything in it follows from the seed and the calls."""

    directory: Path
    release: Path
    seed: int
    now_s: float = 1_000.0
    broker: FakeBroker = field(init=False)
    collector: CollectorLife = field(init=False)
    devices: dict[str, DeviceLife] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.broker = FakeBroker(self.seed)
        self.collector = CollectorLife(self)
        self.collector.assign(manifest.load(self.release)[1])

    def add_device(self, name: str) -> DeviceLife:
        self.devices[name] = DeviceLife(self, name, seed=len(self.devices))
        return self.devices[name]

    def settle(self, rounds: int = 60) -> None:
        """Let a good network and healthy power bring everything to rest."""
        self.collector.fuse.disarm()
        self.broker.up = True
        self.broker.downlink_loss_ratio = self.broker.duplicate_ratio = 0.0
        self.broker.shuffle = False
        for device in self.devices.values():
            device.fuse.disarm()
            device.bench.held = True  # nothing new is measured
            device.connect()
        for _ in range(rounds):
            # Longer than the outbox's patience with a gap, and than a broker's with an acknowledgement.
            self.now_s += 10.0
            for device in self.devices.values():
                device.turn()
            self.broker.redeliver_unacked()
            self.collector.ingest(10_000, acknowledge=True)
            self.collector.work()
            if all(not len(device.outbox) for device in self.devices.values()):
                return


class CollectorLife:
    """The collector's loops over one database file; a crash ends them, and the next call begins anew."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fuse = Fuse()
        self.path = world.directory / "collector" / FILE_NAME
        self.path.parent.mkdir()
        self._start()
        with self.store.transaction() as tx:
            tx.put_policy(POLICY, world.now_s)
        self.reader = SqliteReader(lambda: sqlite3.connect(self.path))

    def assign(self, digest: str) -> None:
        payload = (self._world.release / manifest.MANIFEST_NAME).read_bytes()
        with self.store.transaction() as tx:
            tx.put_release(digest, payload, "world", self._world.now_s)
            tx.put_assignment("*", digest, self._world.now_s)

    def ingest(self, most: int, *, acknowledge: bool) -> None:
        """Take what the broker has; a crash, or `acknowledge` unset, lets all of it come again."""
        batch: list[Message] = self._world.broker.deliver(most)
        if not self._crashes(lambda: self.save(batch)) and acknowledge:
            for message in batch:
                self._world.broker.ack(message)

    def save(self, batch: Sequence[Message]) -> None:
        """Bring a batch to disk."""
        self._ingest.save([Arrival(message.topic, message.payload) for message in batch], self._world.now_s)

    def work(self) -> None:
        """Judge, steer and send."""
        self._crashes(self._work)

    def _work(self) -> None:
        while self._judge.step(self._world.now_s, connected_since_s=self._world.now_s - 1e6):
            pass
        self._steer.step(self._world.now_s)
        due = outgoing.due(self.store, self._world.now_s)
        try:
            for one in due:
                self._world.broker.send(one.topic, one.payload, retain=one.retain)
        except UnreachableError:
            return
        outgoing.sent(self.store, due, self._world.now_s)

    def _crashes(self, do: Callable[[], None]) -> bool:
        try:
            do()
        except CrashError:
            self.store.close()
            self.fuse.disarm()
            self._start()
            return True
        return False

    def _start(self) -> None:
        self.store = SqliteWriter(lambda: connect(self.path, self.fuse))
        self._ingest = Ingest(self.store)
        self._judge = Judge(self.store)
        self._steer = Steer(self.store, "http://collector/api/v1/artifacts")


class DeviceLife:
    """One device: its disk lasts, its agent's process comes and goes."""

    def __init__(self, world: World, name: str, *, seed: int) -> None:
        self.world = world
        self.name = name
        self.fuse = Fuse()
        self.directory = world.directory / name
        self.directory.mkdir()
        self.boot = 1
        self.bench = Bench(
            steady(seed), on_load=lambda spec: refused() if "too-new" in spec.artifact else load_answer(spec)
        )
        self._words = random.Random(f"{world.seed} {name}")
        self.given_out: set[Numbered] = set()
        self._start()

    def turn(self) -> None:
        """Let the agent do what is due, or die of a crash and start again."""
        try:
            self.supervisor.turn()
        except CrashError:
            self.crash()
        self._note()

    def connect(self) -> None:
        """Have the broker's client find the broker."""
        if self.world.broker.up and not self.link.connected:
            self.link.connect()

    def crash(self, *, reboot: bool = False, lose_outbox: bool = False, lose_counter: bool = False) -> None:
        """End the agent at once, and start it again on the same disk."""
        self._note()
        self.link.drop()
        self.outbox.close()
        self.fuse.disarm()
        self.boot += reboot
        if lose_outbox:
            for path in self.directory.glob(f"{outboxes.FILE_NAME}*"):
                path.unlink()
        if lose_counter:
            (self.directory / COUNTER_NAME).unlink(missing_ok=True)
        self._start()

    def numbers_held(self) -> set[Numbered]:
        """Return the numbers in the outbox, read past the agent."""
        return {
            (self.name, *key)
            for key in _rows(self.directory / outboxes.FILE_NAME, "SELECT counter, random, seq FROM messages")
        }

    def _note(self) -> None:
        """Keep count of every number that the disk says was given out, also of lives that the agent forgets."""
        for counter, random_, following in _rows(
            self.directory / outboxes.FILE_NAME, "SELECT counter, random, next_seq FROM life"
        ):
            self.given_out |= {(self.name, counter, random_, seq) for seq in range(1, following)}

    def _start(self) -> None:
        self.outbox = Outbox(
            lambda: connect(self.directory / outboxes.FILE_NAME, self.fuse),
            CounterFile(self.directory / COUNTER_NAME),
            boot=f"boot-{self.boot}",
            new_random=lambda: f"{self._words.getrandbits(64):016x}",
            max_bytes=8_000,  # five windows or so: the oldest often have to give way
            jitter=lambda: 1.0,
        )
        self.link = BrokerLink(self)
        self.supervisor = Supervisor(
            AgentSettings(device=self.name, device_class="board", state_dir=str(self.directory)),
            state_dir=self.directory,
            outbox=self.outbox,
            standing=StandingFile(self.directory / standings.FILE_NAME, f"boot-{self.boot}"),
            link=self.link,
            slots=Slots(self.directory / "slots"),
            fetcher=CopyingFetcher(self.world.release),
            new_runner=self.bench.new_runner,
            clock=self,
            machine=FakeMachine(),
        )
        self.supervisor.start()

    # The device's clocks: the wall clock of a board without a battery.

    def monotonic_s(self) -> float:
        return self.world.now_s

    def uptime_s(self) -> float:
        return self.monotonic_s()

    def wall_s(self) -> float:
        return self.world.now_s - 1_000.0


class BrokerLink:
    """The agent's `Link`, over the fake broker."""

    def __init__(self, device: DeviceLife) -> None:
        self._device = device
        self._broker = device.world.broker
        self._events: list[LinkEvent] = []
        self._sessions = 0
        self.connected = False

    def open(self) -> None:
        """The world decides when there is a connection."""

    def connect(self) -> None:
        name = self._device.name
        session = f"{self._device.boot:04x}{self._sessions:08x}{id(self) & 0xFFFF:04x}"
        self._sessions += 1
        self._broker.connect(name, will=(topics.build(name, "state"), self._device.supervisor.will(session)))
        for kind in topics.DOWNLINK:
            self._broker.subscribe(name, topics.build(name, kind))
        self.connected = True
        self._events.append(Connected(session))

    def drop(self) -> None:
        """Lose the connection without a word."""
        if self.connected:
            self._broker.disconnect(self._device.name, clean=False)
            self._events.append(Disconnected("lost", refused=False))
        self.connected = False

    def events(self) -> list[LinkEvent]:
        if self.connected:
            self._events += [Received(topic, payload) for topic, payload in self._broker.inbox(self._device.name)]
        events, self._events = self._events, []
        return events

    def network(self) -> Network:
        return Network(round_trips=0)

    def publish(self, kind: str, payload: bytes, *, retain: bool = False, answers: Received | None = None) -> bool:
        if not self.connected:
            return False
        try:
            self._broker.publish(self._device.name, topics.build(self._device.name, kind), payload)
        except UnreachableError:
            # Like the real client: it says yes before it notices.
            self.drop()
        return True

    def close(self, farewell: bytes) -> None:
        self.publish("state", farewell, retain=True)
        if self.connected:
            self._broker.disconnect(self._device.name, clean=True)
        self.connected = False


class CopyingFetcher:
    """A `Fetcher` whose network is a folder."""

    def __init__(self, release: Path) -> None:
        self._release = release
        self._result: FetchResult | None = None

    def start(self, order: FetchOrder) -> None:
        shutil.copytree(self._release, order.directory, dirs_exist_ok=True)
        self._result = FetchResult(ok=True)

    def fileno(self) -> int | None:
        return None

    def result(self) -> FetchResult | None:
        result, self._result = self._result, None
        return result

    def stop(self) -> None:
        self._result = None


def _rows(path: Path, sql: str) -> list[Any]:
    """Read a database as somebody else would."""
    if not path.exists():
        return []
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    except sqlite3.OperationalError:
        return []  # the tables are not made yet
    finally:
        connection.close()
