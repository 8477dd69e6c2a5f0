"""Real MQTT brokers as a fleet's owner may run them, each as a child on a free port, in the clear or over TLS.

Not fakes: what a test of the link or a benchmark speaks to. Those that are not on this machine are left out, by name.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_collector.broker import find_binary
from fakes.certificates import Pair

_UP_WITHIN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Tls:
    """What a broker shows; with `ca_file` it asks for a certificate of that CA."""

    pair: Pair
    ca_file: str | None = None


@dataclass(slots=True)
class Server:
    """A broker that runs; `speaks` is the newest MQTT that it knows."""

    address: tuple[str, int]
    speaks: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


def installed() -> dict[str, bool]:
    """Return which brokers are on this machine."""
    return {
        "nats-server": True,
        "mosquitto": _mosquitto() is not None,
    }


@contextmanager
def running(name: str, directory: Path, tls: Tls | None = None) -> Iterator[Server]:
    """Run one of them, for everybody who knows the port."""
    server = _START[name](directory, _free_port(), tls)
    deadline_s = time.monotonic() + _UP_WITHIN_S
    try:
        while not _listens(server.address):
            assert server.process.poll() is None, server.log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline_s, f"{name} does not listen"
            time.sleep(0.02)
        yield server
    finally:
        server.stop()


def _nats(directory: Path, port: int, tls: Tls | None) -> Server:
    shown = ""
    if tls:
        ca = f', ca_file: "{tls.ca_file}", verify: true' if tls.ca_file else ""
        shown = f'tls {{ cert_file: "{tls.pair.cert}", key_file: "{tls.pair.key}"{ca} }}'
    config = directory / "nats.conf"
    config.write_text(
        f'server_name: test\nlisten: "127.0.0.1:{_free_port()}"\njetstream {{ store_dir: "{directory}/js" }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}"\n{shown} }}\n'
    )
    return _start([str(find_binary().path), "-c", str(config)], directory, port, "3.1.1")


def _mosquitto() -> str | None:
    # Debian keeps it where only root's PATH looks.
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _start_mosquitto(directory: Path, port: int, tls: Tls | None) -> Server:
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", f"pid_file {directory}/mosquitto.pid"]
    if os.geteuid() == 0:
        # Or it would become somebody who cannot read the key.
        lines.append("user root")
    if tls:
        lines += [f"certfile {tls.pair.cert}", f"keyfile {tls.pair.key}"]
        if tls.ca_file:
            lines += [f"cafile {tls.ca_file}", "require_certificate true"]
    config = directory / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")
    binary = _mosquitto()
    assert binary
    return _start([binary, "-c", str(config)], directory, port, "5")


_START: Final[dict[str, Callable[[Path, int, Tls | None], Server]]] = {
    "nats-server": _nats,
    "mosquitto": _start_mosquitto,
}


def _start(command: list[str], directory: Path, port: int, speaks: str) -> Server:
    log = directory / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=directory)
    return Server(("localhost", port), speaks, process, log)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(("127.0.0.1", address[1]), timeout=1.0).close()
    except OSError:
        return False
    return True
