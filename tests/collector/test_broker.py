from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenfleet_collector import broker
from evenfleet_collector.access import Issuer
from evenfleet_collector.broker import Broker
from evenfleet_shared.errors import EXIT_USAGE, ConfigError


@pytest.fixture
def occupied() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def a_broker(data: Path, **options: object) -> Broker:
    return Broker(data, issuer=Issuer().public_key, **options)  # type: ignore[arg-type]


async def start_and_stop(embedded: Broker) -> None:
    try:
        await embedded.start()
    finally:
        await embedded.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_started_broker_listens_and_stopped_one_is_gone(tmp_path: Path) -> None:
    embedded = a_broker(tmp_path)

    async def scenario() -> tuple[int, int, bool]:
        endpoint = await embedded.start()
        pid, listening = embedded.pid, listens(endpoint.mqtt_port)
        assert pid
        await embedded.stop()
        await embedded.stop()
        return pid, endpoint.mqtt_port, listening

    pid, port, listening = asyncio.run(scenario())

    assert listening
    assert not alive(pid)
    assert not listens(port)
    assert embedded.pid is None


def test_watch_ends_quietly_after_stop(tmp_path: Path) -> None:
    embedded = a_broker(tmp_path)

    async def scenario() -> None:
        await embedded.start()
        watching = asyncio.create_task(embedded.watch())
        await asyncio.sleep(0)
        await embedded.stop()
        await asyncio.wait_for(watching, 5.0)

    asyncio.run(scenario())

    assert embedded.restarts == 0


def test_restarted_broker_is_another_process_on_the_same_ports(tmp_path: Path) -> None:
    embedded = a_broker(tmp_path)

    async def scenario() -> None:
        endpoint = await embedded.start()
        before = embedded.pid
        watching = asyncio.create_task(embedded.watch())
        embedded.restart()
        while embedded.pid in {before, None} or not listens(endpoint.mqtt_port):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # what is waited for happens in another process
        await embedded.stop()
        await watching

    asyncio.run(asyncio.wait_for(scenario(), 20.0))

    assert embedded.restarts == 1


def test_room_for_the_queue_does_not_hang_on_the_free_disk(tmp_path: Path) -> None:
    """Left to itself the server allows three quarters of what is free, and the queue's reservation fails on less."""
    asyncio.run(start_and_stop(a_broker(tmp_path)))

    assert "Max Storage:     4.00 GB" in (tmp_path / "nats-server.log").read_text()


def test_asked_port_is_taken(tmp_path: Path, occupied: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    embedded = a_broker(tmp_path, mqtt_port=port)

    asyncio.run(start_and_stop(embedded))

    assert embedded.endpoint.mqtt_port == port


def test_port_in_use_is_one_line_that_names_it(tmp_path: Path, occupied: int) -> None:
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {occupied}: the port is in use.*--mqtt-port") as caught:
        asyncio.run(start_and_stop(a_broker(tmp_path, mqtt_port=occupied)))

    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [0, 18830])
def test_address_of_another_machine_is_a_configuration_error(tmp_path: Path, port: int) -> None:
    # 192.0.2.0/24 is nobody's (RFC 5737).
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        asyncio.run(start_and_stop(a_broker(tmp_path, mqtt_host="192.0.2.1", mqtt_port=port)))


def test_data_folder_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")

    with pytest.raises(ConfigError, match="cannot write to the data folder"):
        asyncio.run(start_and_stop(a_broker(tmp_path / "data")))


def test_passwords_are_readable_to_the_owner_only(tmp_path: Path) -> None:
    embedded = a_broker(tmp_path)
    (tmp_path / "nats-server.conf").write_text("of an earlier start, with a loose mode")
    (tmp_path / "nats-server.conf").chmod(0o644)

    asyncio.run(start_and_stop(embedded))

    assert stat.S_IMODE((tmp_path / "nats-server.conf").stat().st_mode) == 0o600
    assert embedded.endpoint.collector_password in (tmp_path / "nats-server.conf").read_text()
    assert embedded.endpoint.collector_password not in (tmp_path / "nats-server.log").read_text()


def test_data_folder_with_odd_letters_is_quoted(tmp_path: Path) -> None:
    data = tmp_path / 'my "data" $HOME {é} # \\'

    asyncio.run(start_and_stop(a_broker(data)))

    assert (data / "jetstream").is_dir()
    assert "Server is ready" in (data / "nats-server.log").read_text()


def server_of_version(folder: Path, version: str) -> Path:
    folder.mkdir()
    path = folder / "nats-server"
    path.write_text(f"#!/bin/sh\necho 'nats-server: v{version}'\n")
    path.chmod(0o755)
    return path


def test_new_enough_server_on_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = server_of_version(tmp_path / "bin", "2.10.0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")

    assert broker.find_binary() == broker.Binary(path, (2, 10, 0))


def test_too_old_server_on_the_path_gives_way_to_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = server_of_version(tmp_path / "bin", "2.9.10")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    caplog.set_level("INFO")

    found = broker.find_binary()

    assert found.path != path
    assert found.version >= broker.MIN_VERSION
    assert f"{path} is 2.9.10, needed is 2.10" in caplog.text


def test_no_server_on_the_path_and_the_packaged_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert broker.find_binary().version >= broker.MIN_VERSION
