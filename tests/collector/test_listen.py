from __future__ import annotations

import socket

import pytest

from evenfleet_collector import listen
from evenfleet_shared.errors import ConfigError


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def connects(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=5):
        return True


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        pytest.param("::1", ["::1"], marks=needs_ipv6),
        ("0.0.0.0", ["127.0.0.1"]),
        pytest.param("::", ["127.0.0.1", "::1"], marks=needs_ipv6),
    ],
)
def test_host_of_either_protocol_is_listened_on(host: str, asked: list[str]) -> None:
    with listen.listening(host, 0) as server:
        assert all(connects(address, server.getsockname()[1]) for address in asked)


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=needs_ipv6)])
def test_address_that_stands_for_all_is_said_as_one_that_answers(host: str) -> None:
    with listen.listening(host, 0) as server:
        reached = listen.reached_by(host)
        assert not listen.is_any(reached)
        assert connects(reached, server.getsockname()[1])
    assert listen.reached_by("collector.plant") == "collector.plant"


def test_port_in_use_and_foreign_addresses_are_one_line() -> None:
    with listen.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1 port {port}: Address already in use; give another --http"):
            listen.listening("127.0.0.1", port)
    with pytest.raises(ConfigError, match="Cannot assign requested address; give another"):
        listen.listening("192.0.2.77", 0)
    with pytest.raises(ConfigError, match=r"nowhere\.invalid port 0: "):
        listen.listening("nowhere.invalid", 0)
