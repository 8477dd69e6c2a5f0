"""Download a release into a slot, in a short-lived child that the supervisor starts and forgets.

`python -m evenfleet_agent.fetch URL RELEASE DIRECTORY VARIANT...` ends with one line of JSON on its standard
output: a `FetchResult`. `FetchProcess` is the supervisor's end of it.

* Nothing is used before its size and sha256 are those that the manifest names, and the manifest's those of the release.
* Paths come from the manifest's own checked pattern, never from the network.
* A file has its name only once its content is on disk, and the manifest has its own last: after a power cut there is
  no whole slot with a hole in it.
* A download that was cut off goes on where it stopped; files that are whole are not fetched again.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from evenfleet_agent.rollout import Cause
from evenfleet_shared import manifest
from evenfleet_shared.disk import put_in_place, write_whole
from evenfleet_shared.errors import ArtifactError
from evenfleet_shared.kinship import die_with_parent
from evenfleet_shared.manifest import FileRef

TIMEOUT_S: Final = 30.0
# Past this a slow link is a stuck one; the next try goes on where this one stopped.
MAX_FETCH_S: Final = 3600.0
_CHUNK_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class FetchResult:
    """How a download ended; why and by whose fault, where it failed."""

    ok: bool
    cause: Cause = "link"
    reason: str = ""


class WrongContentError(ArtifactError):
    """Something came that is not what was asked for: the server's fault, or that of somebody in between."""


class Fetcher(Protocol):
    """Something that brings releases into slots, one at a time."""

    def start(self, url: str, release: str, variants: Sequence[str], directory: Path) -> None:
        """Begin.

        Raises:
            OSError: No process can be started; nothing is under way.
        """

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when there is a result; None while nothing is under way."""

    def result(self) -> FetchResult | None:
        """Return how it ended, None while it goes on or nothing was begun."""

    def stop(self) -> None:
        """Give up what is under way."""


class FetchProcess:
    """A `Fetcher` that starts this module as a child."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, url: str, release: str, variants: Sequence[str], directory: Path) -> None:
        self.stop()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "evenfleet_agent.fetch", url, release, str(directory), *variants],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def fileno(self) -> int | None:
        return self._child.stdout.fileno() if self._child and self._child.stdout else None

    def result(self) -> FetchResult | None:
        if self._child is None or self._child.poll() is None:
            return None
        child, self._child = self._child, None
        assert child.stdout is not None
        with child.stdout:
            said = child.stdout.read(65536)
        try:
            return FetchResult(**json.loads(said))
        except (ValueError, TypeError):
            return FetchResult(ok=False, reason=f"the download ended with code {child.returncode} and no word")

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            if self._child.stdout:
                self._child.stdout.close()
            self._child = None


def fetch_release(url: str, release: str, variants: Sequence[str], directory: Path) -> None:
    """Bring a release's manifest, golden set and the artifacts of some variants into a directory.

    Args:
        url: Where artifacts are served by their sha256.
        release: The sha256 of the manifest.
        variants: Those to fetch; one that the release lacks is an error.
        directory: Filled; files in it that belong to the release are kept.

    Raises:
        WrongContentError: What was served is not what was asked for.
        ArtifactError: The release is what was asked for and cannot be used: trying again cannot help.
        OSError: The link or the disk failed.
    """
    whole, part = directory / manifest.MANIFEST_NAME, directory / f"{manifest.MANIFEST_NAME}.part"
    found = next((path for path in (whole, part) if path.exists() and manifest.file_digest(path) == release), None)
    if found is None:
        _clear(directory)
        payload = _get(f"{url}/{release}", manifest.MAX_MANIFEST_BYTES)
        if manifest.digest(payload) != release:
            raise WrongContentError(
                f"{url}/{release[:12]}… served another file; its sha256 is {manifest.digest(payload)[:12]}…"
            )
        # Renamed last, below: a manifest in a slot says that the slot is whole.
        found = part
        write_whole(part, payload)
    described = manifest.decode(found.read_bytes(), f"release {release[:12]}")
    wanted = [*described.golden.files, *(described.variant(name).artifact for name in variants)]
    for reference in wanted:
        _fetch_file(url, reference, directory)
    put_in_place(found, whole)


def main(arguments: Sequence[str]) -> int:
    """Run as the child; see the module's docstring."""
    # A supervisor that dies takes its download along: the next one starts it again.
    die_with_parent()
    signal.alarm(int(MAX_FETCH_S))
    url, release, directory, *variants = arguments
    try:
        fetch_release(url, release, variants, Path(directory))
        result = FetchResult(ok=True)
    except ArtifactError as error:
        cause: Cause = "content" if isinstance(error, WrongContentError) else "release"
        result = FetchResult(ok=False, cause=cause, reason=str(error))
    # ValueError: of an address that urllib cannot take apart.
    except (OSError, http.client.HTTPException, ValueError) as error:
        result = FetchResult(ok=False, reason=f"cannot fetch release {release[:12]}…: {error}")
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


def _fetch_file(url: str, reference: FileRef, directory: Path) -> None:
    path = directory / reference.file
    try:
        manifest.check_file(path, reference)
    except ArtifactError:
        pass
    else:
        return
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have > reference.size_bytes:
        part.unlink()
        have = 0
    if have < reference.size_bytes:
        _download(f"{url}/{reference.sha256}", part, have, reference.size_bytes)
    try:
        manifest.check_file(part, reference)
    except ArtifactError as error:
        found = manifest.file_digest(part)
        part.unlink()
        if have:
            # What an earlier try left may be damaged, as by a power cut; the next one begins anew.
            raise OSError(f"what was fetched earlier does not go on: {error}") from None
        raise WrongContentError(
            f"{url}/{reference.sha256[:12]}… served another file as {reference.file}; its sha256 is {found[:12]}…"
        ) from None
    # Here, not where it is downloaded: what an earlier process fetched may never have reached the disk.
    put_in_place(part, path)


def _download(url: str, part: Path, have: int, size_bytes: int) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    with _open(request) as response:
        resumed = have and response.status == http.client.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            left = size_bytes - (have if resumed else 0)
            while left > 0 and (chunk := response.read(min(_CHUNK_BYTES, left))):
                file.write(chunk)
                left -= len(chunk)
    if left:
        raise OSError(f"{url} ended {left} bytes early")


def _get(url: str, max_bytes: int) -> bytes:
    with _open(urllib.request.Request(url)) as response:  # noqa: S310
        payload: bytes = response.read(max_bytes + 1)
        promised = response.headers.get("Content-Length", "")
    if promised.isdecimal() and len(payload) < min(int(promised), max_bytes):
        raise OSError(f"{url} ended {int(promised) - len(payload)} bytes early")
    return payload


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    try:
        # The scheme is http or https: `desired` is checked when it is decoded.
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        raise OSError(f"{request.full_url} answered {error.code} {error.reason}") from None
    return response


def _clear(directory: Path) -> None:
    """Empty a slot that holds another release, its manifest first."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / manifest.MANIFEST_NAME).unlink(missing_ok=True)
    for folder in (directory / "artifacts", directory / "golden"):
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
