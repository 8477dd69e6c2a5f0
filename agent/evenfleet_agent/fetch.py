"""Download a release into a slot: the child that `fetcher` starts and forgets, so that what it loads ends with it.

`python -m evenfleet_agent.fetch` takes a `FetchOrder` as JSON on its standard input and ends with a `FetchResult` on its
standard output.

* Nothing is used before its size and sha256 are those that the manifest names, and the manifest's those of the release.
* Where the device's owner trusts keys, the release is signed by one of them, or nothing of it is fetched. Keys come from
  the device's own files, never from the network.
* Paths come from the manifest's own checked pattern, never from the network.
* A file has its name only once its content is on disk, and the manifest has its own last: after a power cut there is
  no whole slot with a hole in it.
* A download that was cut off goes on where it stopped; files that are whole are not fetched again.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_agent import engines, operators
from evenfleet_agent.fetcher import FetchOrder, FetchResult
from evenfleet_agent.rollout import Cause
from evenfleet_shared import manifest, trust
from evenfleet_shared.disk import put_in_place, write_whole
from evenfleet_shared.errors import ArtifactError, ConfigError, ModelRefusedError
from evenfleet_shared.kinship import die_with_parent
from evenfleet_shared.manifest import FileRef
from evenfleet_shared.messages import ReleaseSignature
from evenfleet_shared.signature import PublicKey, Signature

TIMEOUT_S: Final = 30.0
# Past this a slow link is a stuck one; the next try goes on where this one stopped.
MAX_FETCH_S: Final = 3600.0
_CHUNK_BYTES: Final = 1 << 18


class WrongContentError(ArtifactError):
    """Something came that is not what was asked for: the server's fault, or that of somebody in between."""


class UntrustedError(ArtifactError):
    """A release that no key that is trusted here has signed."""


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


def check_signed(release: str, signatures: Sequence[ReleaseSignature], trusted: Sequence[PublicKey]) -> None:
    """Refuse a release that none of the keys has signed.

    Args:
        release: Its digest.
        signatures: What it is offered with.
        trusted: The device's own; none trusts everybody.

    Raises:
        UntrustedError: There is no signature of theirs, or one that does not hold.
    """
    if not trusted:
        return
    for offered in signatures:
        key = next((key for key in trusted if key.id == offered.key), None)
        if key is None:
            continue
        if not _holds(key, Signature(release=release, key=offered.key, signature=offered.signature)):
            raise UntrustedError(
                f"release {release[:12]}… comes with a signature of key {offered.key[:12]}… that does not hold; it is not run"
            )
        return
    others = f"{len(signatures)} of other keys" if signatures else "none at all"
    raise UntrustedError(
        f"release {release[:12]}… is not signed by a key that this device trusts (release.trusted_keys), it has {others}; "
        "sign it with 'evenfleet release sign' and push it again"
    )


def main() -> int:
    """Run as the child; see the module's docstring."""
    # A supervisor that dies takes its download along: the next one starts it again.
    die_with_parent()
    signal.alarm(int(MAX_FETCH_S))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=FetchOrder)
    release = order.release
    try:
        trusted = [trust.read_public_key(Path(file)) for file in order.trusted_keys]
        check_signed(release, order.signatures, trusted)
        fetch_release(order.url, release, order.variants, Path(order.directory))
        check_fits(order)
        result = FetchResult(ok=True)
    except ConfigError as error:
        # The device's own file: it may be mended, and the release is none the worse.
        result = FetchResult(ok=False, reason=f"release.trusted_keys: {error}")
    except ArtifactError as error:
        cause: Cause = "content" if isinstance(error, WrongContentError) else "release"
        result = FetchResult(ok=False, cause=cause, reason=str(error))
    # ValueError: of an address that urllib cannot take apart.
    except (OSError, http.client.HTTPException, ValueError, subprocess.SubprocessError) as error:
        result = FetchResult(ok=False, reason=f"cannot fetch release {release[:12]}…: {error}")
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


def check_fits(order: FetchOrder) -> None:
    """Refuse a release of which this device's runtime is known to be able to load no variant: what runs here goes on.

    Where it can load one, the others are refused when they are loaded, one by one.

    Raises:
        ArtifactError: It lacks operators for all of them.
    """
    version = _installed_version(order)
    if version is None:
        return
    directory = Path(order.directory)
    described, _ = manifest.load(directory)
    reasons = []
    for name in order.variants:
        variant = described.variant(name)
        if variant.format != "tflite":
            return
        try:
            operators.check_file(directory / variant.artifact.file, runtime=order.runtime or "", version=version)
        except ModelRefusedError as error:
            reasons.append(str(error))
        else:
            return
    if reasons:
        raise ArtifactError(f"this device can run no variant of release {order.release[:12]}…: {reasons[0]}")


def _installed_version(order: FetchOrder) -> str | None:
    """Return the version of the runtime that is to run a release, None where nothing is known of it from here."""
    package = engines.by_name(order.runtime).package if order.runtime else None
    if package is None:
        return None
    if order.python is None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None
    asked = subprocess.run(
        [order.python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    return asked.stdout.strip() if asked.returncode == 0 else None


def _holds(key: PublicKey, signature: Signature) -> bool:
    try:
        return key.signed(signature.release, signature)
    except ValueError:  # no base64, or not 64 bytes of it
        return False


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
    sys.exit(main())
