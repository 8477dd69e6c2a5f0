"""Ask a collector over HTTP: what the command line stands on.

Decides how an answer becomes a value and a refusal an error. Leaves to `commands` what to ask and how to show it.

* A collector that does not answer is an `UnreachableError`, one that says no a `RefusedError` with its own words.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from evenfleet_collector.config import DEFAULT_URL
from evenfleet_collector.resources import API, Assignment, Enrolment, Flag, NewCommand, Page, Parity
from evenfleet_collector.store.rows import (
    AppWindowRow,
    CellRow,
    CommandRow,
    DeviceRow,
    EventRow,
    ReleaseRow,
    TagRow,
    WindowRow,
)
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import signature as signatures
from evenfleet_shared.errors import ArtifactError, ConfigError, EvenfleetError, RefusedError, UnreachableError
from evenfleet_shared.manifest import FileRef
from evenfleet_shared.signature import Signature

T = TypeVar("T")


_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
_PIECE_BYTES: Final = 1 << 18
_AGAIN_S: Final = 1.0
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

    def apps(self, device: str, **filters: str) -> list[AppWindowRow]:
        """Return windows of a device's applications.

        Raises:
            RefusedError: It is not known.
        """
        return list(self._all(f"/devices/{quote(device, safe='')}/apps", Page[AppWindowRow], filters))

    def enrol(self, device: str) -> Enrolment:
        """Enrol a device and return its token.

        Raises:
            RefusedError: It is enrolled already.
        """
        return _decode(self._send("POST", "/devices", json={"device": device}), Enrolment)

    def newest_events(self, device: str, count: int) -> list[EventRow]:
        """Return what a device reported last, the newest first."""
        path, parameters = f"/devices/{quote(device, safe='')}/events", {"sort": "-id", "page_size": str(count)}
        return list(self._get(path, Page[EventRow], parameters).items)

    def windows(self, device: str, *, start: str) -> list[WindowRow]:
        """Return a device's windows received from then on, which is RFC 3339, in the log's order."""
        return list(self._all(f"/devices/{quote(device, safe='')}/windows", Page[WindowRow], {"start": start}))

    def order(self, device: str, wanted: NewCommand) -> CommandRow:
        """Have a command sent to a device until it answers, for its `ttl_s` at most.

        Raises:
            RefusedError: The device is not known, or too many commands wait for it.
        """
        body = msgspec.to_builtins(wanted)
        return _decode(self._send("POST", f"/devices/{quote(device, safe='')}/commands", json=body), CommandRow)

    def command(self, device: str, correlation_id: str) -> CommandRow:
        """Return one command, and what became of it.

        Raises:
            RefusedError: It is not known, or is forgotten.
        """
        return self._get(f"/devices/{quote(device, safe='')}/commands/{quote(correlation_id, safe='')}", CommandRow)

    def releases(self) -> list[ReleaseRow]:
        """Return releases, the newest first."""
        return list(self._all("/releases", Page[ReleaseRow], {}))

    def release(self, digest: str) -> ReleaseRow:
        """Return the release that is tagged `digest`, or whose digest starts so.

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

    def add_signature(self, signature: Signature) -> ReleaseRow:
        """Push a signature of a release that is there.

        Raises:
            RefusedError: It was not taken.
        """
        path = f"/releases/{signature.release}/signatures/{signature.key}"
        headers = {"Content-Type": "application/json"}
        return _decode(self._send("PUT", path, content=signatures.encode(signature), headers=headers), ReleaseRow)

    def tags(self) -> list[TagRow]:
        """Return tags by name."""
        return list(self._all("/tags", Page[TagRow], {}))

    def tag(self, tag: str) -> TagRow:
        """Return one tag.

        Raises:
            RefusedError: It is not known.
        """
        return self._get(f"/tags/{quote(tag, safe='')}", TagRow)

    def put_tag(self, tag: str, release: str) -> TagRow:
        """Let a tag stand for a release.

        Raises:
            RefusedError: The release is not known.
        """
        return _decode(self._send("PUT", f"/tags/{quote(tag, safe='')}", json={"release": release}), TagRow)

    def remove_tag(self, tag: str) -> None:
        """Take a tag away.

        Raises:
            RefusedError: It is not known.
        """
        self._send("DELETE", f"/tags/{quote(tag, safe='')}")

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
        return self._asked(sha256).status_code == 200

    def put_artifact(self, path: Path, reference: FileRef, sent: Callable[[int], None]) -> None:
        """Upload a file, from where an earlier upload of it stopped.

        A connection that breaks is made again as long as each brings the upload further.

        Args:
            path: Where it lies here.
            reference: Its digest and size.
            sent: Called with how much of it is there, before and after each piece.

        Raises:
            ArtifactError: It cannot be read.
            RefusedError: It was not taken.
            UnreachableError: The collector does not answer; what was uploaded stays there for a day.
        """
        offset = self._received(reference)
        while offset is not None:
            offset = self._brought_on(path, reference, offset, sent)
        sent(reference.size_bytes)

    def _brought_on(self, path: Path, reference: FileRef, offset: int, sent: Callable[[int], None]) -> int | None:
        """Upload from `offset`; returns where to go on, None when all is there."""
        try:
            self._put_from(path, reference, offset, sent)
        except UnreachableError as error:
            # The collector may need a moment to see that the connection broke, and to write what came.
            time.sleep(_AGAIN_S)
            further: int | None = offset
            with suppress(UnreachableError):
                further = self._received(reference)
            if further is not None and further <= offset:
                raise UnreachableError(
                    f"the upload of {reference.file} broke off; pushed again within a day, it goes on there: {error}"
                ) from None
            return further
        except RefusedError:
            # What was kept may have been spoilt, or completed by another upload.
            if not offset:
                raise
            return None if self._received(reference) is None else 0
        return None

    def _put_from(self, path: Path, reference: FileRef, offset: int, sent: Callable[[int], None]) -> None:
        def pieces() -> Iterator[bytes]:
            try:
                with path.open("rb") as file:
                    place = file.seek(offset)
                    sent(place)
                    while piece := file.read(_PIECE_BYTES):
                        yield piece
                        place += len(piece)
                        sent(place)
            except OSError as error:
                raise ArtifactError(f"cannot read {path}: {error.strerror}; the release was not pushed") from None

        size = reference.size_bytes
        headers = {"Content-Length": str(size - offset), "Content-Type": "application/octet-stream"}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
        self._send("PUT", f"/artifacts/{reference.sha256}", content=pieces(), headers=headers)

    def _received(self, reference: FileRef) -> int | None:
        """Return where the upload of an artifact goes on; None where all of it is there."""
        response = self._asked(reference.sha256)
        if response.status_code == 200:
            return None
        told = response.headers.get("upload-offset", "")
        offset = int(told) if told.isdecimal() else 0
        return offset if offset < reference.size_bytes else 0

    def _asked(self, sha256: str) -> httpx.Response:
        response = self._request("HEAD", f"/artifacts/{sha256}")
        if response.status_code not in {200, 404}:
            _refuse(response)
        return response

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
