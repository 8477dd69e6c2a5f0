"""`evenfleet serve` as a process: what it says when it cannot start, how it ends, and what it starts again with."""

from __future__ import annotations

import json
import queue
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from evenfleet_collector.store.sqlite import FILE_NAME
from evenfleet_shared import messages, topics
from evenfleet_shared.messages import Receipt
from fakes.brokers import Device
from fakes.collectors import Serving, serve, serving
from fakes.uplink import DEVICE, context, state, window

pytestmark = pytest.mark.processes

WINDOW = topics.build(DEVICE, "window")


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "data") as collector:
        yield collector


def ended(data: Path, *arguments: str) -> tuple[int, str]:
    process = serve(data, *arguments)
    said, complained = process.communicate(timeout=40)
    assert said == ""
    return process.returncode, complained


def one_line(complained: str) -> str:
    (line,) = complained.splitlines()
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("option", ["--http-port", "--mqtt-port"])
def test_a_port_in_use_is_one_line_and_exit_2(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--http-port": "0", "--mqtt-port": "0"} | {option: str(taken.getsockname()[1])}
        code, complained = ended(tmp_path, *(word for pair in ports.items() for word in pair))

    assert code == 2
    assert ports[option] in one_line(complained)
    assert option in complained
    assert not any("nats-server" in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True))


@pytest.mark.parametrize("data", ["/proc/evenfleet", "/dev/null/evenfleet", __file__])
def test_a_data_directory_that_cannot_be_written_is_one_line_and_exit_2(data: str) -> None:
    code, complained = ended(Path(data), "--http-port", "0", "--mqtt-port", "0")

    assert code == 2
    assert f"cannot use {data} as --data" in one_line(complained)


def test_listening_on_every_address_says_one_that_can_be_asked_and_devices_are_told_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--http-host", "0.0.0.0") as collector:
        assert "0.0.0.0" not in collector.url
        assert collector.get("/readyz")["ready"]
        assert misdirected(collector, f"rebound.example:{collector.http_port}")
        assert not misdirected(collector, f"localhost:{collector.http_port}")
        _, said = collector.end()

    assert f"Devices are told to fetch from {collector.url}; --public-url" in said


def test_host_of_the_public_url_and_allowed_hosts_are_let_in(tmp_path: Path) -> None:
    names = ("--public-url", "http://fleet.example/plant", "--allowed-host", "Fleet-2.example")
    with serving(tmp_path, *names) as collector:
        assert [misdirected(collector, name) for name in ("fleet.example", "fleet-2.example", "fleet-3.example")] == [
            False,
            False,
            True,
        ]


def misdirected(collector: Serving, host: str) -> bool:
    request = urllib.request.Request(f"{collector.url}/api/v1/stats", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10):
            return False
    except urllib.error.HTTPError as refused:
        return refused.code == 421


def test_a_database_that_is_none_is_one_line_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fleet.sqlite").write_bytes(b"my only copy of something else" * 100)
    code, complained = ended(tmp_path, "--http-port", "0", "--mqtt-port", "0")

    assert code == 1
    assert "not a database" in one_line(complained)
    assert (tmp_path / "fleet.sqlite").read_bytes().startswith(b"my only copy")


@pytest.mark.parametrize(
    ("text", "expected"), [("htp_port = 1", "did you mean http_port?"), ("mqtt_port = -1", "mqtt_port"), ("x", "TOML")]
)
def test_a_wrong_configuration_is_one_line_and_exit_2(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "collector.toml"
    file.write_text(text)
    code, complained = ended(tmp_path / "data", "--config", str(file))

    assert code == 2
    assert expected in one_line(complained)


def test_a_second_collector_on_the_same_data_is_refused_and_the_first_goes_on(
    collector: Serving, tmp_path: Path
) -> None:
    code, complained = ended(tmp_path / "data", "--http-port", "0", "--mqtt-port", "0")

    assert code == 1
    assert "another collector runs on" in one_line(complained)
    assert collector.get("/readyz")["ready"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_soon_and_cleanly_and_nothing_is_left(collector: Serving, number: signal.Signals) -> None:
    device = collector.device(DEVICE)
    assert device.connect() == "Success"
    broker = collector.broker
    began_s = time.monotonic()

    code, said = collector.end(number)

    assert (code, said) == (0, "Warning: any device is let in (--anonymous-devices).\n" if said else "")
    assert time.monotonic() - began_s < 10.0
    assert not broker.is_running()
    device.close()


def test_connections_let_in_and_refused_are_counted(tmp_path: Path) -> None:
    with serving(tmp_path, "--enrolled-devices") as collector:
        token = collector.put("/api/v1/devices", b'{"device": "press-07"}', method="POST")["token"]
        answers = [
            device.connect()
            for device in (
                Device(collector.endpoint, "press-07", "wrong", client_id="press-07"),
                Device(collector.endpoint, "press-07", token, client_id="press-08"),
                Device(collector.endpoint, "press-07", token, client_id="press-07"),
            )
        ]

        assert [answer == "Success" for answer in answers] == [False, False, True]
        assert collector.get("/api/v1/stats")["access"] == {"admitted": 1, "denied": {"credentials": 1, "user name": 1}}
        assert collector.metric('evenfleet_connections_denied_total{reason="credentials"}') == 1.0


def test_random_bytes_are_a_counted_dead_letter_and_the_next_good_message_gets_in(collector: Serving) -> None:
    device = collector.device(DEVICE)
    assert device.connect() == "Success"
    for payload in (b"", b"\xff\x00\x81 what is this", b"{" * 1000, messages.encode(window(1))[:-1]):
        assert device.publish(WINDOW, payload)
    assert device.publish(WINDOW, messages.encode(window(2)))

    rows = collector.until(
        lambda: collector.get(f"/api/v1/devices/{DEVICE}/windows")["items"] or None, "the good window"
    )

    assert [row["window"]["seq"] for row in rows] == [2]
    assert collector.get("/api/v1/stats")["dead_letters"] == 4
    device.close()


def test_a_kill_loses_nothing_that_was_receipted_and_a_restart_needs_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        device = first.device(DEVICE)
        assert device.connect() == "Success"
        assert device.subscribe(topics.build(DEVICE, "receipt"))
        assert device.publish(topics.build(DEVICE, "state"), messages.encode(state()))
        assert device.publish(topics.build(DEVICE, "context"), messages.encode(context(1)))
        for seq in range(2, 102):
            assert device.publish(WINDOW, messages.encode(window(seq)))
        receipted = 0
        while receipted < 10:
            receipt = messages.decode("receipt", device.next().payload)
            assert isinstance(receipt, Receipt)
            receipted = max(part.contiguous for part in receipt.incarnations)
        broker = first.broker
        first.process.kill()
        first.process.communicate(timeout=10)
        device.close()
    psutil.wait_procs([broker], timeout=10)
    assert not broker.is_running()

    with serving(tmp_path) as second:
        rows = second.until(lambda: all_windows(second, 100), "every window that the broker had confirmed")
        assert sorted(row["window"]["seq"] for row in rows) == list(range(2, 102))
        assert second.get("/readyz")["ready"]
        code, _ = second.end()
        assert code == 0


def all_windows(collector: Serving, count: int) -> list[dict[str, dict[str, int]]] | None:
    items: list[dict[str, dict[str, int]]] = []
    token = ""
    while True:
        page = collector.get(f"/api/v1/devices/{DEVICE}/windows?page_size=50{token}")
        items += page["items"]
        if not page["next_page_token"]:
            return items if len(items) >= count else None
        token = f"&page_token={page['next_page_token']}"


def test_a_broker_that_dies_is_started_again_and_messages_get_in(collector: Serving) -> None:
    broker = collector.broker
    broker.kill()
    psutil.wait_procs([broker], timeout=10)

    def connects() -> Device | None:
        if not collector.get("/readyz")["ready"]:
            return None
        device = collector.device(DEVICE)
        try:
            return device if device.connect() == "Success" else None
        except (OSError, queue.Empty):
            return None

    device = collector.until(connects, "the broker to come back")
    assert device.publish(WINDOW, messages.encode(window(1)))
    collector.until(lambda: collector.get(f"/api/v1/devices/{DEVICE}/windows")["items"] or None, "the window")
    device.close()


def test_a_loop_that_fails_is_said_by_readyz_and_goes_on_when_it_can(collector: Serving, tmp_path: Path) -> None:
    """The policy in force is damaged: nothing can be judged, and everything else goes on."""
    with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME, isolation_level=None)) as db:
        db.execute("INSERT INTO policies (revision, set_s, body) VALUES (99, 0, 'damaged')")
        assert any("judging pauses" in reason for reason in _until_readyz_answers(collector, 503)["reasons"])
        assert urllib.request.urlopen(f"{collector.url}/api/v1/devices", timeout=10).status == 200

        db.execute("DELETE FROM policies WHERE revision = 99")
    _until_readyz_answers(collector, 200)


def _until_readyz_answers(collector: Serving, status: int) -> Any:
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        try:
            answer = urllib.request.urlopen(f"{collector.url}/readyz", timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        if answer.status == status:
            return json.load(answer)
        time.sleep(0.1)
    raise AssertionError(f"/readyz never answered {status}")
