"""A real agent whose runners crash, hang and are killed, whose disk is full, and whose broker never answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakes.agents import Agent, push, running, until
from fakes.collectors import serving

pytestmark = pytest.mark.processes

pytest.importorskip("ai_edge_litert", reason="needs LiteRT")


def failures(agent: Agent) -> list[str]:
    """Return what was told of runners and lies in the outbox."""
    rows = agent.ask("SELECT payload FROM messages WHERE kind = 'event'")
    return [str(row[0]) for row in rows if b"runner-failed" in row[0]]


def ready(agent: Agent) -> None:
    standing = agent.state_dir / "standing.json"
    until(lambda: standing.exists() and '"float32":"ready"' in standing.read_text(), "the variant to be loaded")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_runner_that_is_killed_is_told_with_its_signal_and_measured_again(tmp_path: Path, number: int) -> None:
    with serving(tmp_path / "data") as collector, running(tmp_path, collector.mqtt) as agent:
        push(collector, tmp_path)
        ready(agent)
        pid = agent.process.pid
        collector.process.send_signal(signal.SIGSTOP)  # so that what is told can be read in the outbox
        try:
            victim = agent.runners[0]
            victim.send_signal(number)
            name = signal.Signals(number).name
            until(lambda: any(f"killed by {name}" in event for event in failures(agent)), "the failure to be told")
            until(lambda: agent.runners and agent.runners[0].pid != victim.pid, "a runner to be started again")
        finally:
            collector.process.send_signal(signal.SIGCONT)
        before = agent.last_seq()
        until(lambda: agent.last_seq() > before + 3, "more windows")
        assert (agent.process.pid, agent.process.poll()) == (pid, None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a disk of its own takes root, to mount it")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.slow  # for it takes root, which an automatic build may not have
def test_a_full_disk_ends_nothing_and_what_was_numbered_is_not_lost(tmp_path: Path, small_disk: Path) -> None:
    with (
        serving(tmp_path / "data") as collector,
        running(tmp_path, collector.mqtt, state_dir=small_disk / "agent") as agent,
    ):
        push(collector, tmp_path)
        ready(agent)
        pid = agent.process.pid
        collector.process.send_signal(signal.SIGSTOP)  # nothing is receipted: the outbox only grows
        ballast = small_disk / "ballast"
        try:
            with ballast.open("wb") as file:
                fill(file.fileno())
            assert agent.process.stderr is not None
            lines = iter(agent.process.stderr.readline, "")
            said = next(line for line in lines if "is not kept" in line)
            assert "cannot write to the outbox" in said
            assert agent.process.poll() is None
            ballast.unlink()
            said = next(line for line in lines if "messages were not kept" in line)
            assert "can be written again" in said
        finally:
            collector.process.send_signal(signal.SIGCONT)
        before = agent.last_seq()
        until(lambda: agent.last_seq() > before + 3, "more windows")
        collector.until(
            lambda: not {key for key in agent.held() if key[2] <= before} or None, "what was held to arrive"
        )
        assert agent.process.pid == pid
        balance = collector.get("/api/v1/stats")["balance"]
        assert (balance["lost"], balance["refused"]) == (0, 0)


def fill(descriptor: int) -> None:
    """Write until there is no room left."""
    for size in (4096, 512, 1):
        with suppress(OSError):
            while True:
                os.write(descriptor, b"x" * size)


@pytest.mark.parametrize("accepts", [True, False])
def test_an_agent_whose_broker_never_answers_ends_within_five_seconds(tmp_path: Path, *, accepts: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        address = listener.getsockname()[:2]
        # Without room in the queue a connection is not even refused, as at a host that is switched off.
        crowd = [] if accepts else [connecting(address) for _ in range(8)]
        with running(tmp_path, f"{address[0]}:{address[1]}") as agent:
            until((agent.state_dir / "standing.json").exists, "the agent to start")
            if accepts:
                listener.settimeout(20)
                connection, _ = listener.accept()
                crowd.append(connection)
                assert connection.recv(1) == b"\x10"  # CONNECT, which is never answered
            took_s, said = agent.stop()
        assert agent.process.returncode == 0, said
        assert took_s < 5.0
        assert "Traceback" not in said
        for each in crowd:
            each.close()


def connecting(address: tuple[str, int]) -> socket.socket:
    """Return a socket that is connecting, or waits to."""
    made = socket.socket()
    made.setblocking(False)
    made.connect_ex(address)
    return made
