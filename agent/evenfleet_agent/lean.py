"""Be the agent's process without what it does not need: `python -m evenfleet_agent.lean CONFIG [-v]`.

Libraries load modules for things that an agent never does: proxies and WebSockets, the text of signatures, archives. Those
are hidden, or loaded only if something asks for them after all. Where the broker is spoken to in the clear (`mqtt://`), OpenSSL
is hidden, too: `hashlib` has its own sha256. On a small board that is a quarter of what the agent would take; `bench/footprint.py`
has the figures. `evenfleet-agent run` becomes this process.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Final

# Whoever imports these is prepared for an ImportError, and does the same without.
_WITHOUT: Final = ("_hashlib", "bz2", "lzma", "socks", "typing_extensions")
# These nobody is prepared to miss, and nobody here uses: they must only be there.
_EMPTY: Final = ("msgspec.inspect", "urllib.request")
# Loaded when something is looked up in them: a signature for a class without a docstring, an address in brackets.
_LATER: Final = ("ast", "difflib", "dis", "inspect", "ipaddress", "traceback")


def main() -> None:
    """Hide what is not needed from every import, then run the agent."""
    # Read at the start, and not for the runners: the interpreters in them have many threads.
    os.environ.pop("MALLOC_ARENA_MAX", None)
    for name in _WITHOUT:
        # None makes an import raise ImportError.
        sys.modules[name] = None  # type: ignore[assignment]
    for name in _EMPTY:
        sys.modules[name] = ModuleType(name)
    for name in _LATER:
        sys.modules.setdefault(name, _Later(name))
    # The decoder asks for this type alone, to know one when it sees it; no message has any.
    decimal = _Later("decimal")
    decimal.__dict__["Decimal"] = type("Decimal", (), {})
    sys.modules.setdefault("decimal", decimal)
    if not _needs_tls():
        _hide_ssl()
    from evenfleet_agent import service

    service.main()


def _needs_tls() -> bool:
    # Not before: it loads what is hidden by now.
    from pathlib import Path

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


class _Later(ModuleType):
    """A module that is loaded when something is looked up in it.

    The standard library's LazyLoader would load it at the second `import` already, until Python 3.12.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)  # the import system's own questions
        del sys.modules[self.__name__]
        loaded = importlib.import_module(self.__name__)
        return getattr(loaded, name)


if __name__ == "__main__":
    main()
