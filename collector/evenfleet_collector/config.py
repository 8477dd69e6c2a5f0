"""What a collector is told by its owner."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from msgspec import Meta

from evenfleet_shared import settings

# Where a collector with the settings below is found.
DEFAULT_URL: Final = "http://127.0.0.1:8080"

_Port = Annotated[int, Meta(ge=0, le=65_535)]
# Devices are told it, with a path behind; what they could not read would never reach them.
_Url = Annotated[str, Meta(pattern=r"^https?://[^\s/?#]+[^\s?#]*$(?!\n)", max_length=400)]
_Address = Annotated[str, Meta(min_length=1, max_length=253)]
_Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,253}$(?!\n)")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """The whole configuration of `evenfleet serve`."""

    data: str = "evenfleet-data"
    http_host: _Address = "127.0.0.1"
    http_port: _Port = 8080
    mqtt_host: _Address = "127.0.0.1"
    mqtt_port: _Port = 1883
    public_url: _Url | None = None
    allowed_hosts: tuple[_Host, ...] = ()
    anonymous_devices: bool = False

    @property
    def is_open(self) -> bool:
        """Return whether others than this machine can reach the collector."""
        return not (_is_loopback(self.http_host) and _is_loopback(self.mqtt_host))

    def host_names(self, machine: str) -> frozenset[str]:
        """Return the names that a browser or a device may reach the API by, in lower case.

        Args:
            machine: This machine's own name.

        >>> sorted(ServeSettings(public_url="https://Fleet.example/x", allowed_hosts=("b",)).host_names("plant"))
        ['127.0.0.1', 'b', 'fleet.example', 'plant', 'plant.local']
        """
        public = urlsplit(self.public_url or "").hostname
        names = {self.http_host, public, machine, f"{machine.partition('.')[0]}.local", *self.allowed_hosts}
        return frozenset(name.lower().removesuffix(".") for name in names if name)


COMMENTS: Final = {
    "data": "fleet.sqlite, artifacts/ and jetstream/ lie here",
    "http_host": "where API and dashboard listen; there are no accounts yet, so keep it on loopback",
    "http_port": "0: any free port",
    "mqtt_host": "where devices connect",
    "mqtt_port": "0: any free port",
    "public_url": "how devices reach the API, such as http://collector.plant.local:8080; made of the above by default",
    "allowed_hosts": "names that the API is reached by besides its addresses, this machine's name and public_url's",
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
