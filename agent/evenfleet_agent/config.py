"""What an agent is told by its owner; the release and its schedule come from the collector instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from evenfleet_agent import engines, probe
from evenfleet_shared import settings, topics
from evenfleet_shared.errors import ConfigError
from evenfleet_shared.manifest import Format
from evenfleet_shared.messages import Name, Text

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """How to reach the broker."""

    url: str = "mqtt://127.0.0.1:1883"
    username: str | None = None
    password_file: str | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """What the way to the broker costs."""

    encoding: Literal["messagepack", "json"] = "messagepack"
    metered: bool = False
    metered_window_length_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 3600.0
    metered_keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 600
    budget_bytes_per_day: Annotated[int, Meta(ge=65_536)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """What runs the models."""

    name: engines.Name = "litert"
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    xnnpack: bool = True
    delegate: Annotated[str, Meta(pattern=rf"^({'|'.join(engines.DELEGATES)}|/.+)$", max_length=500)] | None = None
    delegate_options: Annotated[dict[Name, Text], Meta(max_length=32)] = field(default_factory=dict)
    python: str | None = None
    max_growth_bytes: Annotated[int, Meta(ge=1_048_576)] = 268_435_456


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How much is measured for a window."""

    samples: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    min_duration_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.2
    min_sample_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0
    max_duration_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 30.0
    leave_out_waiting: bool = False
    cadence_ms: Annotated[float, Meta(gt=0.0, le=3_600_000.0)] | None = None
    warm_up_max_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 2.0
    lock_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """How much the outbox may hold, how carefully it writes, and how fast it catches up."""

    max_bytes: Annotated[int, Meta(ge=65_536)] = 33_554_432
    max_age_s: Annotated[float, Meta(ge=3600.0, le=1e9)] = 2_592_000.0
    fsync: Literal["always", "interval"] = "always"
    fsync_interval_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 60.0
    backfill_per_s: Annotated[float, Meta(ge=0.1, le=1000.0)] = 10.0

    @property
    def synced_every_s(self) -> float | None:
        """Return how long a write may wait to be on disk; None for not at all."""
        return self.fsync_interval_s if self.fsync == "interval" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """What the agent may take of the device."""

    max_cpu_ratio: Annotated[float, Meta(gt=0.0, le=1024.0)] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSettings:
    """Which releases are run."""

    trusted_keys: Annotated[tuple[str, ...], Meta(max_length=16)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """What applications' own inferences are read from."""

    directory: str = probe.DEFAULT_DIRECTORY
    budget_ratio: Annotated[float, Meta(ge=0.0, le=probe.MAX_BUDGET_RATIO)] = probe.DEFAULT_BUDGET_RATIO
    poll_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedFaultSettings:
    """Faults for demonstrations and tests; all off by default."""

    input_scale: Annotated[float, Meta(ge=-1e6, le=1e6)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The whole configuration of one agent."""

    device: str
    device_class: Name = "unclassified"
    state_dir: str = "/var/lib/evenfleet"
    attributes: Annotated[dict[Name, Text], Meta(max_length=32)] = field(default_factory=dict)
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    release: ReleaseSettings = field(default_factory=ReleaseSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    planted_fault: PlantedFaultSettings = field(default_factory=PlantedFaultSettings)

    def __post_init__(self) -> None:
        if not topics.is_device_id(self.device):
            raise ValueError(f"device is {self.device!r}, must be {topics.DEVICE_ID_RULE}")
        self.broker_address()
        for name in ("ca_file", "cert_file", "key_file"):
            if getattr(self.broker, name) is not None and not self.tls:
                raise ValueError(f"broker.{name} is set, and broker.url is {self.broker.url!r}, expected mqtts://")
        if self.broker.key_file is not None and self.broker.cert_file is None:
            raise ValueError("broker.key_file is set without broker.cert_file, whose key it should be")

    @property
    def formats(self) -> tuple[Format, ...]:
        """Return the artifact formats that the runtime loads."""
        return engines.by_name(self.runtime.name).formats

    def broker_address(self) -> tuple[str, int]:
        """Return the broker's host and port.

        Raises:
            ValueError: The URL is not one of an MQTT broker.
        """
        try:
            url = urlsplit(self.broker.url)
            port = url.port
        except ValueError as error:
            raise ValueError(f"broker.url is {_without_user(self.broker.url)!r}: {error}") from None
        if url.path not in ("", "/") or url.query or url.fragment:
            raise ValueError(f"broker.url is {_without_user(self.broker.url)!r}, expected nothing behind host and port")
        if "@" in url.netloc:
            # Not shown: what stands before it is often a password.
            raise ValueError(
                "broker.url holds a user or a password before its @; put them into broker.username and a file of "
                "broker.password_file"
            )
        if url.scheme not in _PORTS or not url.hostname:
            raise ValueError(f"broker.url is {self.broker.url!r}, expected mqtt://host[:port] or mqtts://host[:port]")
        return url.hostname, port or _PORTS[url.scheme]

    @property
    def tls(self) -> bool:
        """Return whether the broker is spoken to over TLS."""
        return urlsplit(self.broker.url).scheme == "mqtts"

    @property
    def packed(self) -> bool:
        """Return whether messages go up as MessagePack."""
        return self.network.metered or self.network.encoding == "messagepack"

    @property
    def keepalive_s(self) -> int:
        """Return how long the link to the broker is silent at most."""
        return self.network.metered_keepalive_s if self.network.metered else self.broker.keepalive_s

    def password(self) -> str | None:
        """Return the broker password, read from its file.

        Raises:
            ConfigError: The file cannot be read.
        """
        if self.broker.password_file is None:
            return None
        try:
            return Path(self.broker.password_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            why = error.strerror
        except UnicodeDecodeError:
            why = "it is not text"
        raise ConfigError(f"cannot read broker.password_file {self.broker.password_file}: {why}")


def _without_user(url: str) -> str:
    """Return an address without what stands before its @, which is often a password."""
    return re.sub(r"//[^/]*@", "//…@", url)


COMMENTS: Final = {
    "device": topics.DEVICE_ID_RULE,
    "device_class": "devices of one class should measure alike: same board, CPU, runtime",
    "state_dir": "outbox, releases and the incarnation counter lie here",
    "attributes": "your own labels, such as firmware or site, to look for causes in",
    "broker.url": "mqtt://host:port, or mqtts://host:port for TLS",
    "broker.username": "the device id by default",
    "broker.password_file": "the token of 'evenfleet device enrol'",
    "broker.keepalive_s": "a broker not heard for one and a half of it is taken for gone",
    "broker.protocol": "the MQTT version: 5, 3.1.1, or auto for the newer of them that the broker knows",
    "broker.ca_file": "for mqtts: the CA whose brokers are trusted, PEM; the system's by default",
    "broker.cert_file": "for mqtts: this device's certificate, PEM, where the broker asks for one",
    "broker.key_file": "its key, PEM without passphrase; not needed where it stands in cert_file",
    "network.encoding": "json can be read along with any MQTT client, and is a third larger",
    "network.metered": "true: bytes cost; smaller messages, fewer windows, a longer keepalive",
    "network.metered_window_length_s": "then a window is at least so long",
    "network.metered_keepalive_s": "then this keepalive holds",
    "network.budget_bytes_per_day": "more never goes over the broker's socket, both ways together; then the agent waits for the next day",
    "runtime.name": f"{', '.join(engines.NAMES[:-1])} or {engines.NAMES[-1]}",
    "runtime.xnnpack": "false: plain kernels, for comparison",
    "runtime.delegate": f"{', '.join(engines.DELEGATES)}, or the path of a TFLite delegate's library; the CPU runs what it leaves",
    "runtime.delegate_options": "as the delegate takes them",
    "runtime.python": "the Python that runs the models; this one by default",
    "runtime.max_growth_bytes": "a runner that has grown by more since its first window leaks, and is started anew",
    "measure.samples": "latency samples per window and variant, at least",
    "measure.min_duration_s": "and for so long, at least: a thousand samples of a small model are over in no time",
    "measure.min_sample_s": "a sample times as many inferences in a row as it takes to last so long; 0: one",
    "measure.max_duration_s": "a window's measuring stops after so long",
    "measure.leave_out_waiting": "true: time without a processor does not count; for several devices on one machine",
    "measure.cadence_ms": "begin an inference every so often, as the application does, for idle clocks lie; one after another by default",
    "measure.lock_file": "agents on one machine that share this file measure in turns",
    "outbox.max_bytes": "then windows give way to summaries, at last the oldest messages go, and the ledger says so",
    "outbox.max_age_s": "older messages go, and the ledger says so; counted while the device is up",
    "outbox.fsync": "always: a power cut takes nothing that was measured; interval: it spares flash",
    "outbox.fsync_interval_s": "with fsync = interval: a power cut takes what was written in these seconds at most",
    "outbox.backfill_per_s": "windows measured offline that are sent in a second, at most",
    "schedule.max_cpu_ratio": "the agent's share of one processor, measuring included; windows are stretched to hold it, commands come on top",
    "release.trusted_keys": "files of public keys; with any, only releases that one of them has signed are run",
    "probe.directory": "where applications that use evenfleet_agent.probe leave their figures; empty: nowhere",
    "probe.budget_ratio": "what statistics of inputs and outputs may take of an application's inference time; 0: none",
    "probe.poll_s": "how often it is read: each process keeps its last 16,384 calls",
    "planted_fault.input_scale": "multiplied into every input; anything but 1.0 is a fault, for demonstrations",
}


def load(file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any]) -> AgentSettings:
    """Load an agent's settings.

    Raises:
        ConfigError: What is wrong, by the setting's name.
    """
    return settings.load(AgentSettings, file, environment, overrides)


def example() -> str:
    """Return a commented configuration file with every setting at its default."""
    return settings.example(AgentSettings, COMMENTS)
