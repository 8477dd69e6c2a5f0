"""Where the collector listens, and by which address it is reached there."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from evenfleet_shared.errors import ConfigError

# What stands for all of a machine's addresses, and a place beyond the default route (RFC 5737, RFC 3849), to which
# nothing is sent.
_ANY_V4: Final = "0.0.0.0"  # noqa: S104 - compared with, not bound
_ANY_V6: Final = "::"
_FAR_V4: Final = "192.0.2.1"
_FAR_V6: Final = "2001:db8::1"


def is_any(host: str) -> bool:
    """Return whether `host` stands for all addresses of the machine that listens on it.

    >>> is_any("0.0.0.0"), is_any("::"), is_any("127.0.0.1")
    (True, True, False)
    """
    return host in {_ANY_V4, _ANY_V6}


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens for HTTP; on both protocols where `host` is ``::``.

    Raises:
        ConfigError: The port is in use, or the address is not one of this machine.
    """
    try:
        # IPv4 first: `localhost` is both, and 127.0.0.1 is what people type.
        family, address = min(
            (found[0], found[4])
            for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )
        both = host == _ANY_V6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        # create_server adds to strerror what stands here anyway; a name that is not known has no errno of the system.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {why}; give another --http-port (0: any free one), or an address "
            "of this machine as --http-host"
        ) from None


def reached_by(host: str) -> str:
    """Return the address that others reach this machine by if it listens on `host`.

    That is `host` itself unless it stands for all addresses; then the one that this machine goes out with, or loopback
    where it has no network.
    """
    if not is_any(host):
        return host
    ways = [(socket.AF_INET, _FAR_V4)] + ([(socket.AF_INET6, _FAR_V6)] if host == _ANY_V6 else [])
    for family, far in ways:
        # Connecting a datagram socket chooses the way and sends nothing.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def address(host: str, port: int) -> str:
    """Return host and port as they stand in a URL.

    >>> address("127.0.0.1", 80), address("::1", 80)
    ('127.0.0.1:80', '[::1]:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
