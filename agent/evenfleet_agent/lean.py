"""Be the agent's process without what it does not need: `python -m evenfleet_agent.lean CONFIG [-v]`.

The MQTT client names modules for things that an agent never does (proxies, WebSockets) and for TLS; to load them all the
same would cost 2.5 MB and, where the broker is spoken to in the clear (`mqtt://`), another 5 MB for OpenSSL: `hashlib`
has its own sha256. `evenfleet-agent run` becomes this process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType


def environment() -> dict[str, str]:
    """Return what this process is started with: one heap for both threads, not a heap each."""
    return {**os.environ, "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    """Hide what is not needed from every import, then run the agent."""
    # Read at the start, and not for the runners: the interpreters in them have many threads.
    os.environ.pop("MALLOC_ARENA_MAX", None)
    # None makes an import raise ImportError, which the MQTT client is prepared for.
    sys.modules["socks"] = None  # type: ignore[assignment]
    # This one it is not prepared for, and never uses without the one above.
    sys.modules["urllib.request"] = ModuleType("urllib.request")
    # hashlib is prepared for it; with TLS it would only be a second way to the same.
    sys.modules["_hashlib"] = None  # type: ignore[assignment]
    if not _needs_tls():
        _hide_ssl()
    from evenfleet_agent import service

    service.main()


def _needs_tls() -> bool:
    from evenfleet_agent import config
    from evenfleet_shared.errors import EvenfleetError

    try:
        return config.load(Path(sys.argv[1]), os.environ, {}).tls
    except EvenfleetError:
        return False  # `service` says what is wrong


def _hide_ssl() -> None:
    # The MQTT client names these in `except` clauses even where it has found no ssl.
    ssl = ModuleType("ssl")
    for name in ("SSLError", "SSLWantReadError", "SSLWantWriteError", "CertificateError"):
        setattr(ssl, name, type(name, (OSError,), {}))
    sys.modules["ssl"] = ssl


if __name__ == "__main__":
    main()
