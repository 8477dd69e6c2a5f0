"""What must hold whatever is lost, repeated, reordered or killed on the way from a device to the collector's disk."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fakes.runners import steady
from fakes.tiny_release import write_release
from world.world import Numbered, World

DEVICES = ("board-1", "board-2")
a_device = st.sampled_from(DEVICES)
SHARED_MEMORY = Path("/dev/shm")


class Loop(RuleBasedStateMachine):
    """Devices measure and publish, the collector ingests, judges and answers, and everything may go wrong in between."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        root = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        self.directory = Path(tempfile.mkdtemp(prefix="evenfleet-world-", dir=root))
        self.world = World(self.directory, write_release(self.directory), seed)
        for name in DEVICES:
            self.world.add_device(name).connect()
        self.forgotten: set[Numbered] = set()

    @rule(seconds=st.sampled_from([0.5, 4.0, 10.0, 10.0, 10.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now_s += seconds
        for device in self.world.devices.values():
            device.turn()

    @rule(most=st.sampled_from([1, 3, 1000]), acknowledge=st.booleans())
    def collector_ingests(self, most: int, acknowledge: bool) -> None:
        self.world.collector.ingest(most, acknowledge=acknowledge)

    @rule()
    def collector_works(self) -> None:
        self.world.collector.work()

    @rule()
    def all_goes_well_for_a_while(self) -> None:
        for device in self.world.devices.values():
            device.connect()
        for _ in range(3):
            self.world.now_s += 10.0
            for device in self.world.devices.values():
                device.turn()
            self.world.collector.ingest(1000, acknowledge=True)
            self.world.collector.work()

    @rule()
    def acknowledgements_are_lost(self) -> None:
        self.world.broker.redeliver_unacked()

    @rule(loss=st.sampled_from([0.0, 0.5, 1.0]), twice=st.sampled_from([0.0, 0.5]), shuffle=st.booleans())
    def network_changes(self, loss: float, twice: float, shuffle: bool) -> None:
        broker = self.world.broker
        broker.downlink_loss_ratio, broker.duplicate_ratio, broker.shuffle = loss, twice, shuffle

    @rule(device=a_device)
    def connection_drops(self, device: str) -> None:
        self.world.devices[device].link.drop()

    @rule(device=a_device)
    def connection_returns(self, device: str) -> None:
        self.world.devices[device].connect()

    @rule()
    def broker_restarts(self) -> None:
        for device in self.world.devices.values():
            device.link.drop()
        self.world.broker.crash()
        self.world.broker.up = True

    @rule(device=a_device, reboot=st.booleans())
    def agent_is_killed(self, device: str, reboot: bool) -> None:
        self.world.devices[device].crash(reboot=reboot)

    @rule(device=a_device, statements=st.integers(0, 12))
    def agent_will_be_killed_at_a_statement(self, device: str, statements: int) -> None:
        self.world.devices[device].fuse.arm(statements)

    @rule(statements=st.integers(0, 60))
    def collector_will_be_killed_at_a_statement(self, statements: int) -> None:
        self.world.collector.fuse.arm(statements)

    @rule(device=a_device, counter_too=st.booleans())
    def outbox_is_destroyed(self, device: str, counter_too: bool) -> None:
        self._disarmed(device)
        # The ledger lies in the same file, and is lost with it.
        life = self.world.devices[device]
        self.forgotten |= life.numbers_held() | self._given_up(life.directory)
        self.world.devices[device].crash(lose_outbox=True, lose_counter=counter_too)

    @rule(device=a_device, payload=st.binary(max_size=40))
    def nonsense_arrives(self, device: str, payload: bytes) -> None:
        self.world.broker.inject(f"evenfleet/v1/{device}/window", payload)

    @invariant()
    def what_left_an_outbox_is_on_the_collectors_disk(self) -> None:
        committed, refused, _ = self._kept()
        for device in self.world.devices.values():
            gone = device.given_out - device.numbers_held() - self.forgotten - self._given_up(device.directory)
            assert gone <= set(committed) | refused

    @invariant()
    def nothing_is_there_twice_or_under_two_names(self) -> None:
        committed, refused, lost = self._kept()
        assert len(committed) == len(set(committed))
        assert len(committed) + len(refused) + len(lost) == len({*committed, *refused, *lost})
        assert {*committed, *refused, *lost} == self._settled()

    @invariant()
    def nothing_counts_as_lost_that_a_device_could_still_send(self) -> None:
        lost = self._kept()[2]
        for device in self.world.devices.values():
            assert not lost & device.numbers_held()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.settle()
            self._every_number_ends_somewhere()
            self._the_balance_adds_up()
        finally:
            self.world.collector.store.close()
            shutil.rmtree(self.directory)

    def _every_number_ends_somewhere(self) -> None:
        committed, refused, lost = self._kept()
        for device in self.world.devices.values():
            given_up = self._given_up(device.directory)
            assert not device.numbers_held()
            # What the device gave up is not waited for, and counted.
            assert given_up - self.forgotten <= {*committed, *refused, *lost}
            # A life that ended with its outbox, and never was heard of again, leaves numbers that nobody waits for.
            assert device.given_out - {*committed, *refused} <= self.forgotten | given_up
            assert {one for one in lost if one[0] == device.name} <= self.forgotten | given_up

    def _the_balance_adds_up(self) -> None:
        committed, refused, lost = self._kept()
        balance = self.world.collector.reader.stats().balance
        assert (balance.committed, balance.refused, balance.lost) == (len(committed), len(refused), len(lost))
        assert balance.measured == balance.committed + balance.refused + balance.lost + balance.in_flight

    def _disarmed(self, device: str) -> None:
        self.world.devices[device].fuse.disarm()

    def _kept(self) -> tuple[list[Numbered], set[Numbered], set[Numbered]]:
        """Return what the collector has: committed (as rows), refused and lost, by plain SQL."""
        numbers = "SELECT device, counter, random, seq FROM"
        tables = ("windows", "summaries", "events", "device_contexts")
        committed = [number for table in tables for number in self._ask(f"{numbers} {table}")]
        lost = self._spread("SELECT device, counter, random, first, last FROM losses")
        return committed, set(self._ask(f"{numbers} refusals")), lost

    def _settled(self) -> set[Numbered]:
        return self._spread("SELECT device, counter, random, first, last FROM settled")

    def _spread(self, sql: str) -> set[Numbered]:
        return {
            (device, counter, word, seq)
            for device, counter, word, first, last in self._ask(sql)
            for seq in range(first, last + 1)
        }

    def _given_up(self, directory: Path) -> set[Numbered]:
        connection = sqlite3.connect(directory / "outbox.sqlite")
        try:
            rows = connection.execute("SELECT counter, random, first, last FROM ledger").fetchall()
        except sqlite3.OperationalError:
            rows = []
        finally:
            connection.close()
        return {
            (directory.name, counter, word, seq)
            for counter, word, first, last in rows
            for seq in range(first, last + 1)
        }

    def _ask(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(self.world.collector.path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


Loop.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLoop = Loop.TestCase


def test_a_healthy_fleet_is_judged_within(tmp_path: Path) -> None:
    world = World(tmp_path, write_release(tmp_path), seed=1)
    for name in DEVICES:
        world.add_device(name).connect()
    for _ in range(90):
        world.now_s += 10.0
        for device in world.devices.values():
            device.turn()
        world.collector.ingest(1000, acknowledge=True)
        world.collector.work()
    cells = {(cell.device, cell.variant): cell for cell in world.collector.reader.cells()}
    assert {cell.verdict for key, cell in cells.items() if key[1] == "float32"} == {"within"}
    assert all(cell.refusal for key, cell in cells.items() if key[1] == "too-new")
    assert not world.collector.reader.flags(only_open=False)


def test_a_slowed_device_is_flagged_and_the_other_is_not(tmp_path: Path) -> None:
    world = World(tmp_path, write_release(tmp_path), seed=2)
    for name in DEVICES:
        world.add_device(name).connect()
    for window in range(60):
        if window == 30:
            world.devices["board-2"].bench.on_measure = steady(9, median_ms=2.0)
        world.now_s += 10.0
        for device in world.devices.values():
            device.turn()
        world.collector.ingest(1000, acknowledge=True)
        world.collector.work()
    flags = world.collector.reader.flags(only_open=False)
    assert [(flag.device, flag.variant, flag.metric) for flag in flags] == [("board-2", "float32", "latency")]
