"""`/readyz` says whether the broker's queue takes messages, whatever happens to the broker; it never waits for it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from evenfleet_collector.access import COLLECTOR_USER
from evenfleet_collector.link.jetstream import STREAM
from fakes.collectors import Serving, serving

pytestmark = pytest.mark.processes


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path) as collector:
        yield collector


def readiness(collector: Serving) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{collector.url}/readyz", timeout=3) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def not_ready(collector: Serving) -> dict[str, Any] | None:
    code, told = readiness(collector)
    return None if code == 200 else told


def shrink_queue(data: Path, max_bytes: int) -> None:
    """Bound the queue from outside, with the collector's own password, as if it had filled up."""
    text = (data / "nats-server.conf").read_text()
    port = re.search(r"^port: (\d+)$", text, re.MULTILINE)
    password = re.search(rf'user: "{COLLECTOR_USER}", password: "(\w+)"', text)
    assert port
    assert password

    async def shrink() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port[1]}", user=COLLECTOR_USER, password=password[1])
        jetstream = client.jetstream()
        config = (await jetstream.stream_info(STREAM)).config
        config.max_bytes = max_bytes
        await jetstream.update_stream(config)
        await client.close()

    asyncio.run(shrink())


def test_ready_collector_shows_how_full_the_queue_is(collector: Serving) -> None:
    code, told = readiness(collector)

    assert (code, told["ready"], told["reasons"]) == (200, True, [])
    assert told["queue_max_bytes"] == 1 << 30
    assert 0 <= told["queue_bytes"] < 10_000
    assert told["queue_messages"] >= 0


def test_full_queue_is_not_ready_and_says_how_full(collector: Serving, tmp_path: Path) -> None:
    shrink_queue(tmp_path, 1000)

    told = collector.until(lambda: not_ready(collector), "the full queue to be told")

    (reason,) = told["reasons"]
    assert re.match(r"the broker's queue is full, \d+ of 1,000 bytes", reason)
    assert told["queue_max_bytes"] == 1000


def test_broker_that_hangs_is_not_ready_and_the_question_does_not_hang_with_it(collector: Serving) -> None:
    broker = collector.broker
    broker.send_signal(signal.SIGSTOP)
    try:
        told = collector.until(lambda: not_ready(collector), "the broker's silence to be told")
        began_s = time.monotonic()
        readiness(collector)
        took_s = time.monotonic() - began_s
    finally:
        broker.send_signal(signal.SIGCONT)

    assert any("does not tell of its stream" in reason for reason in told["reasons"])
    assert told["queue_bytes"] is None
    assert took_s < 1.0
    collector.until(lambda: readiness(collector)[0] == 200 or None, "the broker to be heard again")
