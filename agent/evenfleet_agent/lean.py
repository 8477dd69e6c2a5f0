"""Be the agent's process without OpenSSL: `python -m evenfleet_agent.lean CONFIG [-v]`.

The broker is spoken to in the clear (`mqtt://` is all that `config` takes), so nothing needs it: `hashlib` has its own
sha256. Loading it all the same would cost 5 MB of a small board's memory, a sixth of what the agent takes.
`evenfleet-agent run` becomes this process.
"""

from __future__ import annotations

import sys
from types import ModuleType


def main() -> None:
    """Hide OpenSSL from every import, then run the agent."""
    # None makes an import raise ImportError, which hashlib is prepared for.
    sys.modules["_hashlib"] = None  # type: ignore[assignment]
    # The MQTT client names these in `except` clauses even where it has found no ssl.
    ssl = ModuleType("ssl")
    for name in ("SSLError", "SSLWantReadError", "SSLWantWriteError", "CertificateError"):
        setattr(ssl, name, type(name, (OSError,), {}))
    sys.modules["ssl"] = ssl
    from evenfleet_agent import service

    service.main()


if __name__ == "__main__":
    main()
