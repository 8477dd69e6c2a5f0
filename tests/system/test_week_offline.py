"""Seven days without a network, then all of it at the collector: real windows, the real outbox, the real ingest.

The clock is a number: a window of each variant every five minutes, and ten turns a second once there is a session.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evenfleet_agent.config import OutboxSettings
from evenfleet_agent.outbox import Outbox, look, open_outbox
from evenfleet_collector.ingest import Arrival, Ingest
from evenfleet_collector.store.sqlite import SqliteReader, SqliteWriter, open_reader, open_writer
from evenfleet_shared import topics
from evenfleet_shared.messages import Event, Exceedance, Incarnation, Latency, Limit, Loss, Numbered, State
from fakes import uplink
from fakes.uplink import DEVICE

WINDOWS = 7 * 24 * 12
VARIANTS = ("float32", "int8")
LENGTH_S = 300.0
# When the network comes back, by the collector's clock. The device has none.
BACK_S = 1.8e9


def measured(seed: int) -> tuple[Latency, tuple[Exceedance, ...]]:
    chance = random.Random(seed)
    samples = [abs(chance.gauss(2.0, 0.3)) for _ in range(200)]
    return uplink.latency(samples), uplink.exceedances(samples, [Limit(limit_ms=2.5, revision=1)])


SAMPLES = [measured(seed) for seed in range(20)]


@dataclass
class Device:
    outbox: Outbox
    writer: SqliteWriter
    reader: SqliteReader
    directory: Path
    now_s: float = 0.0
    measured: int = 0
    published: list[str] = field(default_factory=list)

    def measure(self) -> None:
        self.now_s += LENGTH_S
        for variant in VARIANTS:
            latency, exceedances = SAMPLES[self.measured % len(SAMPLES)]

            def make(
                life: Incarnation,
                seq: int,
                floor: int,
                variant: str = variant,
                latency: Latency = latency,
                exceedances: tuple[Exceedance, ...] = exceedances,
            ) -> Numbered:
                return uplink.window(
                    seq,
                    incarnation=life,
                    floor=floor,
                    variant=variant,
                    ended_uptime_s=self.now_s,
                    ended_wall_s=self.now_s,
                    latency=latency,
                    exceedances=exceedances,
                    accuracy=uplink.accuracy(1, 10),
                )

            self.outbox.append("window", make)
            self.measured += 1

    def connect(self) -> None:
        self.outbox.reconnected()
        self.arrive([("state", uplink.state(incarnation=self.outbox.incarnation, uptime_s=self.now_s))])

    def turn(self) -> None:
        """A tenth of a second with a session: tell of losses, send, and hear the receipt."""
        self.now_s += 0.1
        losses = self.outbox.losses_due(self.now_s)
        if losses:
            self.outbox.append("event", self._loss(tuple(losses)))
            self.outbox.told(losses)
        sent = []
        for entry in self.outbox.due(self.now_s, 50):
            self.outbox.sent(entry.key, self.now_s)
            self.published.append(entry.kind)
            sent.append(Arrival(topics.build(DEVICE, entry.kind), entry.payload))
        if sent:
            Ingest(self.writer).save(sent, self._collectors_clock_s())
            self._receipt()

    def arrive(self, messages: list[tuple[str, State]]) -> None:
        Ingest(self.writer).save([uplink.arrival(message) for _, message in messages], self._collectors_clock_s())

    def _receipt(self) -> None:
        with self.writer.transaction() as tx:
            receipt = tx.receipt(DEVICE)
        self.outbox.settle(receipt, self.now_s)

    def _collectors_clock_s(self) -> float:
        return BACK_S - WINDOWS * LENGTH_S + self.now_s

    def _loss(self, losses: tuple[Loss, ...]) -> Callable[[Incarnation, int, int], Numbered]:
        def make(life: Incarnation, seq: int, floor: int) -> Event:
            return uplink.event(seq, incarnation=life, floor=floor, event="loss", losses=losses)

        return make


MakeDevice = Callable[[int], Device]


@pytest.fixture
def make_device(tmp_path: Path) -> Iterator[MakeDevice]:
    made: list[Device] = []

    def make(max_bytes: int) -> Device:
        device: Device | None = None
        outbox = open_outbox(
            tmp_path / "agent",
            boot="boot",
            new_random=lambda: "aaaaaaaa",
            max_bytes=max_bytes,
            jitter=lambda: 1.0,
            uptime_s=lambda: device.now_s if device else 0.0,
        )
        outbox._db.execute("PRAGMA synchronous=OFF")  # no power fails here
        writer = open_writer(tmp_path / "collector")
        writer._connection.execute("PRAGMA synchronous=OFF")
        device = Device(outbox, writer, open_reader(tmp_path / "collector"), tmp_path / "agent")
        made.append(device)
        return device

    yield make
    for device in made:
        device.outbox.close()
        device.writer.close()


def windows_at(device: Device) -> list[tuple[str, float]]:
    return [(row.window.variant, row.window.ended_uptime_s) for row in device.reader.windows(DEVICE, limit=1_000_000)]


def test_of_a_week_offline_within_the_cap_no_window_is_lost_and_each_is_dated(make_device: MakeDevice) -> None:
    device = make_device(OutboxSettings().max_bytes)
    for _ in range(WINDOWS):
        device.measure()
    assert device.outbox.size_bytes < OutboxSettings().max_bytes

    device.connect()
    began_s = device.now_s
    while len(device.outbox):
        device.turn()

    found = windows_at(device)
    assert found == [(variant, LENGTH_S * number) for number in range(1, WINDOWS + 1) for variant in VARIANTS]
    assert device.reader.losses(DEVICE) == []
    assert look(device.directory).given_up == {}
    # At ten a second, and no slower.
    assert WINDOWS * 2 / 10 - 2 < device.now_s - began_s < WINDOWS * 2 / 10 + 2
    for row in device.reader.windows(DEVICE, limit=1_000_000):
        assert row.dated == "uptime"
        assert row.measured_s == pytest.approx(BACK_S - WINDOWS * LENGTH_S + row.window.ended_uptime_s, abs=1.0)


def test_a_live_window_does_not_wait_behind_the_week(make_device: MakeDevice) -> None:
    device = make_device(OutboxSettings().max_bytes)
    for _ in range(WINDOWS // 7):
        device.measure()
    device.connect()
    for _ in range(20):
        device.turn()
    device.published.clear()

    device.measure()
    device.turn()

    assert device.published[:2] == ["window", "window"]


@pytest.mark.parametrize("max_bytes", [500_000, pytest.param(3_000_000, marks=pytest.mark.slow)])
def test_beyond_the_cap_the_ledger_is_exact_and_every_window_is_there_or_in_one_summary(
    make_device: MakeDevice, max_bytes: int
) -> None:
    device = make_device(max_bytes)
    for _ in range(WINDOWS):
        device.measure()
        assert device.outbox.size_bytes <= max_bytes

    device.connect()
    while len(device.outbox):
        device.turn()

    whole = windows_at(device)
    summaries = [row.summary for row in device.reader.summaries(DEVICE, limit=10_000)]
    losses = device.reader.losses(DEVICE)
    assert len(whole) == len(set(whole))
    assert {loss.reason for loss in losses} == {"summarised"}
    assert len(whole) + sum(one.windows for one in summaries) == device.measured
    assert sum(one.latency.n for one in summaries if one.latency) == 200 * sum(one.windows for one in summaries)
    balance = device.reader.stats().balance
    assert (balance.in_flight, balance.refused) == (0, 0)
    assert balance.measured == balance.committed + balance.lost
    assert balance.lost == sum(loss.last_seq - loss.first_seq + 1 for loss in losses)
    assert balance.lost == look(device.directory).given_up["summarised"]
