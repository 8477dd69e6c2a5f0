"""What every request and every answer goes through, whatever the route: host, limits, origin and security headers.

* A body is at most `MAX_BODY_BYTES`, but for artifacts, whose route counts by itself.
* A page of another origin, open in the same browser, cannot change anything here; nor can it by giving its own name
  this server's address (DNS rebinding), for which the browser would take it for this server's own.
* Nothing that this server sends is run, framed or guessed at by a browser beyond what its own page needs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evenfleet_collector.resources import API
from evenfleet_collector.routes.problems import answer

MAX_BODY_BYTES: Final = 8 * 1024 * 1024

_CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# FastAPI's pages have a script written into them.
_OWN_POLICY: Final = ("/docs", "/redoc")
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware.

    Args:
        hosts: The names that this server is reached by, in lower case; its addresses need not be among them.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        headers = Headers(scope=scope)

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(scope=message), path)
            await send(message)

        # Without a host it is no browser's.
        if (host := headers.get("host")) is not None and not is_own(host, self._hosts):
            await answer(path, 421, _misdirected(host))(scope, receive, guarded_send)
            return
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and urlsplit(origin).netloc != headers.get("host"):
            refusal = answer(
                path, 403, f"a page of {origin[:120]} may not change anything here; only this server's own"
            )
            await refusal(scope, receive, guarded_send)
            return
        if scope["method"] == "HEAD" and not path.startswith((f"{API}/artifacts/", f"{API}/stream")):
            # What asks for a page may ask for its head: the server sends no body. Artifacts answer by themselves, and a
            # stream has no end.
            scope = {**scope, "method": "GET"}
        if path.startswith(f"{API}/artifacts/"):
            await self._app(scope, receive, guarded_send)
            return
        if _declared_bytes(headers) > MAX_BODY_BYTES:
            await answer(path, 413, _too_large())(scope, receive, guarded_send)
            return
        await self._app(scope, _limited(receive), guarded_send)


def is_own(authority: str, names: Collection[str]) -> bool:
    """Return whether a ``Host`` header is one that this server is reached by.

    Any address may be: a page that rebinds its name to this server's address still sends its name.

    >>> [is_own(host, {"collector.plant"}) for host in ("Collector.Plant.:80", "evil.example", "10.0.0.7.evil.example")]
    [True, False, False]
    >>> [is_own(host, ()) for host in ("127.0.0.1:8080", "[::1]:8080", "localhost", "[::1", "a@localhost", "")]
    [True, True, True, False, False, False]
    """
    try:
        parts = urlsplit(f"//{authority}")
        host = (parts.hostname or "").removesuffix(".")
        _ = parts.port  # checks it
    except ValueError:
        return False
    if parts.netloc != authority or "@" in authority:
        return False
    return host == "localhost" or host in names or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _misdirected(host: str) -> str:
    return (
        f"{host[:120]} is not a name of this collector; ask by its address, or start it with "
        "'evenfleet serve --allowed-host NAME' if it has this name too"
    )


def _limited(receive: Receive) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise HTTPException(413, _too_large())
        return message

    return counted


def _declared_bytes(headers: Headers) -> int:
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


def _too_large() -> str:
    return f"a request's body has at most {MAX_BODY_BYTES:,} bytes, more arrived; nothing was changed"


def _add_headers(headers: MutableHeaders, path: str) -> None:
    for name, value in _HEADERS.items():
        headers[name] = value
    if path not in _OWN_POLICY:
        headers["Content-Security-Policy"] = _CONTENT_POLICY
    headers.setdefault("Cache-Control", "no-cache")
