"""A real agent with a real interpreter against a real collector: the whole loop, and kills in the middle of it."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.agents import DEVICE, Agent, push, running, status_of, until
from fakes.collectors import WAIT_S, Serving, serving

pytestmark = pytest.mark.processes

pytest.importorskip("ai_edge_litert", reason="needs LiteRT")

# A supervisor holds no runtime, no numpy and no OpenSSL; 32 MiB is what a small board may give it.
SUPERVISOR_RSS_BYTES = 32 * 1024 * 1024


def cells(collector: Serving) -> dict[str, Any]:
    return {cell["variant"]: cell for cell in collector.get("/api/v1/parity")["items"]}


def windows_of(data: Path) -> list[tuple[int, str, int]]:
    connection = sqlite3.connect(f"file:{data / 'fleet.sqlite'}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT counter, random, seq FROM windows").fetchall()
    finally:
        connection.close()


def measured(collector: Serving, at_least: int) -> None:
    def look() -> bool | None:
        cell = cells(collector).get("float32")
        return (cell is not None and cell["windows"] >= at_least) or None

    collector.until(look, f"{at_least} windows to be judged")


def test_from_nothing_to_a_cell_and_to_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path / "data") as collector, running(tmp_path, collector.mqtt) as agent:
        release = push(collector, tmp_path)

        # On a busy machine a device may miss its limit in calibration, which then begins anew: the phase is awaited.
        def judged() -> dict[str, Any] | None:
            found = cells(collector)
            return found if found.get("float32", {}).get("phase") == "judged" else None

        found = collector.until(judged, "the cell to be judged")
        cell = found["float32"]
        assert (cell["release"], cell["accuracy_ratio"]) == (release, 1.0)
        assert cell["p50_ms"] > 0.0
        assert cell["run"]["runtime"] == "litert"
        assert found["too-new"]["refusal"]

        rss_bytes = psutil.Process(agent.process.pid).memory_info().rss
        with capsys.disabled():
            sys.stdout.write(f"\nsupervisor: {rss_bytes / 2**20:.1f} MiB RSS\n")
        assert rss_bytes < SUPERVISOR_RSS_BYTES

        standing = status_of(agent)
        assert (standing["running"], standing["connected"], standing["given_up"]) == (True, True, {})
        assert 0.0 <= standing["receipt_s"] < 120.0

        children = psutil.Process(agent.process.pid).children(recursive=True)
        began_s = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        _, said = agent.process.communicate(timeout=WAIT_S)
        assert time.monotonic() - began_s < 5.0
        assert agent.process.returncode == 0, said
        assert "Traceback" not in said
        assert not psutil.wait_procs(children, timeout=2)[1]

        def gone() -> bool | None:
            return collector.get(f"/api/v1/devices/{DEVICE}")["status"] == "gone" or None

        collector.until(gone, "the device to be gone")


def test_an_agent_that_is_killed_goes_on_and_everything_it_measured_is_there_once(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as collector, running(tmp_path, collector.mqtt) as agent:
        push(collector, tmp_path)
        for windows in (2, 5, 8):
            measured(collector, windows)
            agent.kill()
            agent.start()
        measured(collector, 12)
        collector.until(lambda: collector.get(f"/api/v1/devices/{DEVICE}")["status"] == "birth" or None, "a birth")
        agent.process.send_signal(signal.SIGTERM)
        agent.process.communicate(timeout=WAIT_S)
        assert_all_is_there_once(collector, agent, tmp_path / "data")


def test_a_collector_that_is_killed_goes_on_and_everything_measured_meanwhile_arrives_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as first, running(tmp_path, first.mqtt) as agent:
        push(first, tmp_path)
        measured(first, 3)
        first.process.kill()
        first.process.communicate(timeout=WAIT_S)
        before = agent.last_seq()
        until(lambda: agent.last_seq() > before + 3, "more to be measured without a collector")

        with serving(data, "--mqtt-port", first.mqtt_port, "--http-port", first.http_port) as second:
            second.until(lambda: not (agent.held() & set_up_to(agent, before + 3)) or None, "the outbox to empty")
            agent.process.send_signal(signal.SIGTERM)
            agent.process.communicate(timeout=WAIT_S)
            assert_all_is_there_once(second, agent, data)


def set_up_to(agent: Agent, last: int) -> set[tuple[int, str, int]]:
    return {key for key in agent.held() if key[2] <= last}


def assert_all_is_there_once(collector: Serving, agent: Agent, data: Path) -> None:
    """What is no longer held has arrived, once; nothing was given up."""
    held = agent.held()
    assert agent.ask("SELECT count(*) FROM ledger") == [(0,)]

    def settled() -> dict[str, int] | None:
        balance: dict[str, int] = collector.get("/api/v1/stats")["balance"]
        return balance if balance["in_flight"] <= len(held) else None

    balance = collector.until(settled, "all numbers to be settled")
    assert (balance["refused"], balance["lost"]) == (0, 0)
    rows = windows_of(data)
    assert len(rows) == len(set(rows))
    assert collector.get("/api/v1/stats")["dead_letters"] == 0


def test_a_broker_that_nobody_answers_at_is_said_and_the_agent_waits_and_ends_when_told_to(tmp_path: Path) -> None:
    with running(tmp_path, "127.0.0.1:9") as agent:
        assert agent.process.stderr is not None
        line = agent.process.stderr.readline()
        assert re.search(r"no broker session: no broker answers at 127\.0\.0\.1:9; measuring goes on", line)

        began_s = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        _, said = agent.process.communicate(timeout=WAIT_S)
        assert time.monotonic() - began_s < 5.0
        assert (agent.process.returncode, said) == (0, "")


def test_a_second_agent_on_the_same_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, "127.0.0.1:9") as agent:
        assert agent.process.stderr is not None
        agent.process.stderr.readline()
        second = subprocess.run(
            [sys.executable, "-m", "evenfleet_agent", "run", "--config", str(agent.file)],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert "another agent runs with state_dir" in line

        found = status_of(agent)
        assert (found["running"], found["connected"]) == (True, False)
        assert found["reason"] == "no broker answers at 127.0.0.1:9"
