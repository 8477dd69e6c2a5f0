"""What a collector is told by its owner."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from evenfleet_shared import settings

_Port = Annotated[int, Meta(ge=0, le=65_535)]
# Devices are told it, with a path behind; what they could not read would never reach them.
_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#]+[^\s?#]*$(?!\n)", max_length=400)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """The whole configuration of `evenfleet serve`."""

    data: str = "evenfleet-data"
    http_host: str = "127.0.0.1"
    http_port: _Port = 8080
    mqtt_host: str = "127.0.0.1"
    mqtt_port: _Port = 1883
    public_url: _Url | None = None
    anonymous_devices: bool = False

    @property
    def is_open(self) -> bool:
        """Return whether others than this machine can reach the collector."""
        return not (_is_loopback(self.http_host) and _is_loopback(self.mqtt_host))


COMMENTS: Final = {
    "data": "fleet.sqlite, artifacts/ and jetstream/ lie here",
    "http_host": "where API and dashboard listen; there are no accounts yet, so keep it on loopback",
    "http_port": "0: any free port",
    "mqtt_host": "where devices connect",
    "mqtt_port": "0: any free port",
    "public_url": "how devices reach the API, such as http://collector.plant.local:8080; made of the above by default",
    "anonymous_devices": "true: let in any device without enrolment, for trials",
}


def load(file: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any]) -> ServeSettings:
    """Load a collector's settings.

    Raises:
        ConfigError: What is wrong, by the setting's name.
    """
    return settings.load(ServeSettings, file, environment, overrides)


def example() -> str:
    """Return a commented configuration file with every setting at its default."""
    return settings.example(ServeSettings, COMMENTS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
