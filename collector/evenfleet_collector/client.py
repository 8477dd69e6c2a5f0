"""Ask a collector over HTTP: what the command line stands on.

Decides how an answer becomes a value and a refusal an error. Leaves to `commands` what to ask and how to show it.

* A collector that does not answer is an `UnreachableError`, one that says no a `RefusedError` with its own words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from evenfleet_collector.resources import API, Assignment, Enrolment, Flag, Page, Parity
from evenfleet_collector.store.rows import CellRow, DeviceRow, ReleaseRow
from evenfleet_collector.tolerance import Policy
from evenfleet_shared.errors import ArtifactError, ConfigError, EvenfleetError, RefusedError, UnreachableError
from evenfleet_shared.manifest import FileRef

T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:8080"

_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
_PIECE_BYTES: Final = 1 << 18
_PAGE_SIZE: Final = 1000
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Collector:
    """The API of one collector; a context manager."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        """Prepare; nothing is asked yet.

        Raises:
            ConfigError: `url` is not one of HTTP.
        """
        host = _host(url)
        self._url = url.rstrip("/")
        # A proxy named in the environment cannot reach what listens on this machine's loopback.
        self._http = httpx.Client(base_url=self._url + API, timeout=_TIMEOUT, trust_env=host not in _LOOPBACK)

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def devices(self, **filters: str) -> list[DeviceRow]:
        """Return devices by id."""
        return list(self._all("/devices", Page[DeviceRow], filters))

    def device(self, device: str) -> DeviceRow:
        """Return one device.

        Raises:
            RefusedError: It is not known.
        """
        return self._get(f"/devices/{quote(device, safe='')}", DeviceRow)

    def enrol(self, device: str) -> Enrolment:
        """Enrol a device and return its token.

        Raises:
            RefusedError: It is enrolled already.
        """
        return _decode(self._send("POST", "/devices", json={"device": device}), Enrolment)

    def releases(self) -> list[ReleaseRow]:
        """Return releases, the newest first."""
        return list(self._all("/releases", Page[ReleaseRow], {}))

    def release(self, digest: str) -> ReleaseRow:
        """Return the release whose digest starts with `digest`.

        Raises:
            RefusedError: There is not exactly one.
        """
        return self._get(f"/releases/{quote(digest, safe='')}", ReleaseRow)

    def add_release(self, manifest: bytes) -> ReleaseRow:
        """Push a manifest whose artifacts are there.

        Raises:
            RefusedError: It is no manifest, or an artifact is not there.
        """
        return _decode(
            self._send("POST", "/releases", content=manifest, headers={"Content-Type": "application/json"}), ReleaseRow
        )

    def assign(self, device: str, release: str | None) -> Assignment:
        """Assign a release to a device, or to `resources.EVERY_DEVICE`.

        Raises:
            RefusedError: The release or the device is not known.
        """
        path = f"/assignments/{quote(device, safe='*')}"
        return _decode(self._send("PUT", path, json={"release": release}), Assignment)

    def policy(self) -> Policy:
        """Return the policy in force."""
        return self._get("/policies", Policy)

    def set_policy(self, policy: Policy) -> Policy:
        """Put a policy in force, as the revision behind the one in force.

        Raises:
            RefusedError: It is not one.
        """
        return _decode(self._send("PUT", "/policies", content=msgspec.json.encode(policy)), Policy)

    def parity(self, release: str | None = None, **filters: str) -> Parity:
        """Return the cells of a release, of the latest where none is named.

        Raises:
            RefusedError: The release is not known.
        """
        if release is not None:
            filters["release"] = release
        first = self._get("/parity", Parity, filters)
        cells: list[CellRow] = list(first.items)
        token = first.next_page_token
        while token is not None:
            # By its digest, for a newer release may have been pushed meanwhile.
            page = self._get("/parity", Parity, {**filters, "release": str(first.release), "page_token": token})
            cells += page.items
            token = page.next_page_token
        return Parity(release=first.release, model=first.model, items=tuple(cells))

    def flags(self, *, cleared: bool = False, **filters: str) -> list[Flag]:
        """Return open flags by id, with `cleared` all flags."""
        if cleared:
            filters["cleared"] = "true"
        return list(self._all("/flags", Page[Flag], filters))

    def flag(self, flag: int) -> Flag:
        """Return one flag, with its evidence.

        Raises:
            RefusedError: There is none of this number.
        """
        return self._get(f"/flags/{flag}", Flag)

    def has_artifact(self, sha256: str) -> bool:
        """Return whether an artifact is there."""
        response = self._request("HEAD", f"/artifacts/{sha256}")
        if response.status_code not in {200, 404}:
            _refuse(response)
        return response.status_code == 200

    def put_artifact(self, path: Path, reference: FileRef, sent: Callable[[int], None]) -> None:
        """Upload a file.

        Args:
            path: Where it lies here.
            reference: Its digest and size.
            sent: Called with the number of bytes of each piece.

        Raises:
            ArtifactError: It cannot be read.
            RefusedError: It was not taken.
        """

        def pieces() -> Iterator[bytes]:
            try:
                with path.open("rb") as file:
                    while piece := file.read(_PIECE_BYTES):
                        yield piece
                        sent(len(piece))
            except OSError as error:
                raise ArtifactError(f"cannot read {path}: {error.strerror}; the release was not pushed") from None

        headers = {"Content-Length": str(reference.size_bytes), "Content-Type": "application/octet-stream"}
        self._send("PUT", f"/artifacts/{reference.sha256}", content=pieces(), headers=headers)

    def _all(self, path: str, page_type: type[Page[T]], filters: Mapping[str, str]) -> Iterator[T]:
        parameters = {**filters, "page_size": str(_PAGE_SIZE)}
        while True:
            page = self._get(path, page_type, parameters)
            yield from page.items
            if page.next_page_token is None:
                return
            parameters["page_token"] = page.next_page_token

    def _get(self, path: str, answer_type: type[T], parameters: Mapping[str, str] | None = None) -> T:
        return _decode(self._send("GET", path, params=parameters), answer_type)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        response = self._request(method, path, **arguments)
        if not response.is_success:
            _refuse(response)
        return response

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise UnreachableError(
                f"no collector answers at {self._url} ({_reason(error)}); "
                "is 'evenfleet serve' running, and --url or EVENFLEET_URL right?"
            ) from None


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # checks it
    except ValueError:
        host = None
    if host is None or parts.scheme not in {"http", "https"}:
        raise ConfigError(f"--url: expected http://HOST:PORT or https://HOST, found {url!r}")
    return host


def _decode(response: httpx.Response, answer_type: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=answer_type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EvenfleetError(
            f"{response.request.url} answered what this version does not understand ({error}); is it an Evenfleet "
            "collector of the same version?"
        ) from None


def _reason(error: httpx.TransportError) -> str:
    """Return what the system said, without the numbers and names that it goes by in Python.

    >>> _reason(httpx.ConnectError("[Errno 111] Connection refused")), _reason(httpx.ReadTimeout(""))
    ('Connection refused', 'no answer in time')
    >>> _reason(httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"))
    'wrong version number'
    """
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", str(error)) or "the connection was closed"


def _refuse(response: httpx.Response) -> None:
    try:
        detail = str(msgspec.json.decode(response.content)["detail"])
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError):
        raise EvenfleetError(
            f"{response.request.url} answered {response.status_code} {response.reason_phrase}, and not as an Evenfleet "
            "collector does; is --url or EVENFLEET_URL right?"
        ) from None
    if response.is_client_error:
        raise RefusedError(detail)
    raise EvenfleetError(f"the collector failed: {detail}")
