"""What the service manager hears, over a real socket."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenfleet_agent.systemd import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(listening: socket.socket) -> list[str]:
    found = []
    while select.select([listening], [], [], 0)[0]:
        found.append(listening.recv(4096).decode())
    return found


def test_a_service_manager_hears_that_the_agent_is_ready_alive_and_stopping(manager: socket.socket) -> None:
    agent = ServiceManager({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000"})
    agent.ready("connected")
    agent.alive()
    agent.status("no broker session")
    agent.stopping()

    assert agent.watchdog_s == 30.0
    assert heard(manager) == ["READY=1\nSTATUS=connected", "WATCHDOG=1", "STATUS=no broker session", "STOPPING=1"]


def test_without_a_watchdog_nothing_is_said_at_each_turn(manager: socket.socket) -> None:
    agent = ServiceManager({"NOTIFY_SOCKET": manager.getsockname()})
    agent.alive()

    assert (agent.watchdog_s, heard(manager)) == (None, [])


def test_an_abstract_socket_is_spoken_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"evenfleet-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(5.0)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready("here")
        assert listening.recv(100) == b"READY=1\nSTATUS=here"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_where_nobody_wants_to_hear_nothing_happens(environment: dict[str, str]) -> None:
    agent = ServiceManager(environment)
    agent.ready("connected")
    agent.alive()
    agent.stopping()

    assert agent.watchdog_s is None
