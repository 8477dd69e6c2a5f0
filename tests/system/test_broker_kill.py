"""kill -9 of the server, and of the collector, with the real nats-server on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenfleet_shared import topics
from fakes.brokers import WAIT_S, RunningBroker

KILL_AFTER = 1500
PUBLISHED = 4000
IN_FLIGHT = 500


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningBroker]:
    running = RunningBroker(tmp_path, anonymous=True, ack_wait_s=2.0)
    yield running
    running.close()


def test_server_killed_while_publishing_and_what_is_resent_without_receipt_completes_it(running: RunningBroker) -> None:
    """The server confirms a message before its stream has stored it.

    So a kill may cost the newest of the confirmed ones, at most what was in flight (seen once in about 160 runs,
    on a busy machine; otherwise none). That is why a device keeps a message until the receipt.
    """
    device = running.device("press-07")
    device.client.max_inflight_messages_set(IN_FLIGHT)
    assert device.connect() == "Success"
    confirmed: set[int] = set()
    enough = threading.Event()

    def note(_client: object, _userdata: object, mid: int, _reason: object, _properties: object) -> None:
        confirmed.add(numbers[mid])
        if len(confirmed) >= KILL_AFTER:
            enough.set()

    numbers: dict[int, int] = {}
    device.client.on_publish = note
    topic = topics.build("press-07", "window")
    for number in range(PUBLISHED):
        # The callback needs the number of a message before its confirmation can arrive: paho counts from 1.
        numbers[number + 1] = number
        device.client.publish(topic, b"%d" % number, qos=1)
    assert enough.wait(WAIT_S)
    pid = running.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert device.disconnected.wait(WAIT_S)
    device.client.loop_stop()

    delivered = {int(payload) for _, payload in running.drain(len(confirmed), timeout_s=5.0)}
    lost = confirmed - delivered
    again = running.device("press-07")
    assert again.connect() == "Success"
    assert all(again.publish(topic, b"%d" % number) for number in lost)
    delivered |= {int(payload) for _, payload in running.drain(len(lost))}
    again.close()

    assert KILL_AFTER <= len(confirmed) < PUBLISHED
    assert len(lost) <= IN_FLIGHT
    assert lost == set(sorted(confirmed)[len(confirmed) - len(lost) :])
    assert confirmed <= delivered
    assert running.broker.restarts == 1


def test_server_killed_while_receiving_and_what_was_not_acknowledged_comes_again(running: RunningBroker) -> None:
    device = running.device("press-07")
    device.connect()
    topic = topics.build("press-07", "window")
    assert all(device.publish(topic, b"%d" % number) for number in range(20))
    taken = running.call(running.link.receive(20, WAIT_S))
    running.call(running.link.acknowledge(taken[:5]))
    running.call(running.link.backlog())  # asked after the acknowledgements, on the same connection
    assert running.broker.pid
    os.kill(running.broker.pid, signal.SIGKILL)

    again = {int(payload) for _, payload in running.drain(20 - 5)}

    assert again >= {int(message.payload) for message in taken[5:]}


def test_server_killed_and_devices_connect_and_the_link_sends_again(running: RunningBroker) -> None:
    running.call(running.link.send(topics.build("press-07", "desired"), b"before", retain=True))
    assert running.broker.pid
    os.kill(running.broker.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + WAIT_S
    while not (running.broker.restarts and running.link.connected) and time.monotonic() < deadline_s:
        time.sleep(0.01)

    device = running.device("press-07")

    assert device.connect() == "Success"
    assert device.subscribe(topics.build("press-07", "desired"))
    assert device.next().payload == b"before"
    running.call(running.link.send(topics.build("press-07", "desired"), b"after", retain=True))
    assert device.next().payload == b"after"
    device.close()


def test_server_that_keeps_dying_is_reported_with_its_last_words(tmp_path: Path) -> None:
    running = RunningBroker(tmp_path, max_restarts=2)
    # A file where the server wants its folder: it ends at every start.
    store = tmp_path / "jetstream"
    store.rename(tmp_path / "away")
    store.write_bytes(b"")
    pid = running.broker.pid
    assert pid
    os.kill(pid, signal.SIGKILL)

    error = running.watching.exception(timeout=WAIT_S)
    running.close()

    assert "3 times in a row" in str(error)
    assert "directory" in str(error)


COLLECTOR = """
import asyncio, sys
from pathlib import Path
from evenfleet_collector.access import Issuer
from evenfleet_collector.broker import Broker

async def main():
    broker = Broker(Path(sys.argv[1]), issuer=Issuer().public_key)
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_collector_killed_and_no_server_is_left(tmp_path: Path) -> None:
    collector = subprocess.Popen([sys.executable, "-c", COLLECTOR, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert collector.stdout
    pid = int(collector.stdout.readline())
    assert _is_nats_server(pid)

    collector.kill()
    collector.wait()
    collector.stdout.close()

    deadline_s = time.monotonic() + WAIT_S
    while _is_nats_server(pid):
        assert time.monotonic() < deadline_s, "nats-server outlived the collector"
        time.sleep(0.01)


def _is_nats_server(pid: int) -> bool:
    try:
        # A zombie whose new parent has not fetched it yet has no command line any more.
        return b"nats-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
