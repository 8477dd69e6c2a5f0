"""Say whose signature a release on disk bears: read and write signatures, and keys, which come in files.

    RELEASE/signatures/<key>.json    one signature; <key> is the sha256 of the public key's 32 bytes
    KEY                              a private key; of its owner alone (mode 0600)
    KEY.pub                          its public key; what is given to whoever checks

Decides whether a release is whole, holds nothing else, and is signed by a key that the caller trusts. Leaves to others
whether a signature is asked for.

* A trusted key comes from a file that the caller names, never from the release: one that carries a key is refused,
  whoever it is signed by.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_shared import manifest as manifests
from evenfleet_shared import signature as signatures
from evenfleet_shared.disk import sync_folder, write_whole
from evenfleet_shared.errors import ArtifactError, ConfigError
from evenfleet_shared.manifest import MANIFEST_NAME, Manifest
from evenfleet_shared.signature import KeyId, PrivateKey, PublicKey, Signature

FOLDER: Final = "signatures"
PUBLIC_SUFFIX: Final = ".pub"

_FILE_NAME: Final = re.compile(r"(?P<key>[0-9a-f]{64})\.json")
# A key of any kind in PEM or OpenSSH's form, wherever in a file it stands.
_CARRIED: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*KEY-----|ssh-ed25519 AAAA")
_MAX_KEY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A release whose files are all its own.

    Attributes:
        digest: Its name.
        signatures: What it bears, by key.
        trusted: The keys of those that were checked and hold.
        unknown: The keys of those that could not be checked, being none that the caller trusts.
    """

    manifest: Manifest
    digest: str
    signatures: tuple[Signature, ...]
    trusted: tuple[KeyId, ...]
    unknown: tuple[KeyId, ...]


def read(directory: Path) -> tuple[Signature, ...]:
    """Return the signatures that lie in a release, by key; unchecked.

    Raises:
        ArtifactError: One cannot be read, or is not of the key that its file is named by.
    """
    folder = directory / FOLDER
    found = []
    try:
        # What else lies there is told by `strangers`.
        paths = sorted(path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name)) if folder.is_dir() else []
        for path in paths:
            signature = signatures.decode(path.read_bytes(), str(path))
            if signature.key != path.stem:
                raise ArtifactError(
                    f"{path} says that it is of key {signature.key[:12]}…, expected {path.stem[:12]}…, which it is named "
                    "by; it was changed, do not use it"
                )
            found.append(signature)
    except OSError as error:
        raise ArtifactError(f"the signatures in {folder} cannot be read: {error.strerror}") from None
    return tuple(found)


def write(directory: Path, signature: Signature) -> Path:
    """Put a signature into a release; one by the same key is replaced. Returns where it lies.

    Raises:
        ConfigError: The directory cannot be written.
    """
    path = directory / FOLDER / f"{signature.key}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, signatures.encode(signature))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; the release is not signed by this key") from None
    return path


def strangers(directory: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return what lies in a release and belongs to it neither by its manifest nor as a signature."""
    named = {MANIFEST_NAME, *(reference.file for reference in manifest.files)}
    folders = {Path(file).parent.as_posix() for file in named} | {FOLDER}
    found = []
    for where, below, files in os.walk(directory, onerror=_unreadable):
        here = Path(where).relative_to(directory)
        for name in files:
            file = (here / name).as_posix()
            if file not in named and not (here.as_posix() == FOLDER and _FILE_NAME.fullmatch(name)):
                found.append(file)
        for name in below:
            folder = (here / name).as_posix()
            # A link to a folder is not walked, so what is behind it would go unseen.
            if folder not in folders or (directory / folder).is_symlink():
                found.append(f"{folder}/")
    return tuple(sorted(found))


def check(directory: Path, trusted: Iterable[PublicKey] = ()) -> Checked:
    """Check a release as far as the caller's keys go: its signatures, every file, and that there is nothing else.

    Raises:
        ArtifactError: A file is missing, changed or none of the release's, a signature does not hold, or a key is
            carried along; the first such file is named.
    """
    manifest, digest = manifests.load(directory)
    borne = read(directory)
    keys = {key.id: key for key in trusted}
    # Before the files: who changed a digest in the manifest would have its file named, which is as it was.
    for signature in borne:
        _hold(directory, digest, signature, keys)
    for reference in manifest.files:
        manifests.check_file(directory / reference.file, reference)
    _carry_no_key(directory, {signature.key for signature in borne})
    if found := strangers(directory, manifest):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ArtifactError(
            f"{directory} holds what its manifest does not name: {', '.join(found[:3])}{more}; expected its own files and "
            f"{FOLDER}/ alone, move the others out"
        )
    names = tuple(signature.key for signature in borne)
    return Checked(
        manifest=manifest,
        digest=digest,
        signatures=borne,
        trusted=tuple(name for name in names if name in keys),
        unknown=tuple(name for name in names if name not in keys),
    )


def new_private_key() -> PrivateKey:
    """Return a key that nobody else has."""
    return PrivateKey(os.urandom(signatures.KEY_BYTES))


def write_keys(path: Path, key: PrivateKey) -> Path:
    """Write a private key, for its owner alone, and its public key beside it; returns where that lies.

    Raises:
        ConfigError: One of the files exists, which is never overwritten, or cannot be made; neither is left.
    """
    public = path.with_name(path.name + PUBLIC_SUFFIX)
    made: list[Path] = []
    files = ((path, 0o600, signatures.to_pem(key)), (public, 0o644, signatures.to_pem(key.public)))
    try:
        for file, mode, pem in files:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(file)
            with os.fdopen(descriptor, "w", encoding="ascii") as opened:
                opened.write(pem)
                opened.flush()
                os.fsync(descriptor)  # a key that a power cut empties cannot be made again
        sync_folder(path.parent)
    except OSError as error:
        for file in made:
            with suppress(OSError):
                file.unlink()
        raise ConfigError(f"cannot make {error.filename or path}: {error.strerror}; no key was made") from None
    return public


def read_private_key(path: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        ConfigError: There is none.
    """
    return signatures.private_key(_text(path, "a private key"), str(path))


def read_public_key(path: Path) -> PublicKey:
    """Read a public key.

    Raises:
        ConfigError: There is none.
    """
    return signatures.public_key(_text(path, "a public key"), str(path))


def read_trusted(paths: Sequence[Path], release: Path) -> tuple[PublicKey, ...]:
    """Read the keys that a person trusts.

    Args:
        paths: Files of one public key each, or folders whose ``*.pub`` are.
        release: The release that is to be checked.

    Raises:
        ConfigError: A path lies in the release, holds no key, or is not there.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob(f"*{PUBLIC_SUFFIX}"))
            if not inside:
                raise ConfigError(f"{path}: expected public keys, *{PUBLIC_SUFFIX}, in this folder, found none")
            files += inside
        else:
            files.append(path)
    root = release.resolve()
    for file in files:
        if file.resolve().is_relative_to(root):
            raise ConfigError(
                f"{file} lies in the release itself, whose word is not to be taken for who signed it; expected a key "
                "that came another way"
            )
    return tuple(read_public_key(file) for file in files)


def _hold(directory: Path, digest: str, signature: Signature, keys: Mapping[str, PublicKey]) -> None:
    path = directory / FOLDER / f"{signature.key}.json"
    key = keys.get(signature.key)
    if signature.release != digest:
        # With the key it can be told which of the two was changed.
        if key is not None and key.signed(signature.release, signature):
            changed = f"{directory / MANIFEST_NAME} was changed since it was signed"
        elif key is not None and key.signed(digest, signature):
            changed = f"{path} was changed"
        else:
            changed = f"{path} or {MANIFEST_NAME} was changed"
        raise ArtifactError(
            f"{changed}: the signature is of release {signature.release[:12]}…, the manifest's digest is {digest[:12]}…; "
            "do not use it"
        )
    if key is not None and not key.signed(digest, signature):
        raise ArtifactError(
            f"{path} is not what key {signature.key[:12]}… signs release {digest[:12]}… with; it was changed or forged, "
            "do not use it"
        )


def _carry_no_key(directory: Path, signed_by: Iterable[str]) -> None:
    """Refuse a release with a key in it: sooner or later somebody would check its signature with that."""
    names = set(signed_by)
    for where, _, files in os.walk(directory, onerror=_unreadable):
        for name in sorted(files):
            path = Path(where) / name
            try:
                # Opening what is no file, such as a pipe, could wait for good; it is a stranger anyway.
                if not path.is_file() or (path.name != MANIFEST_NAME and path.stat().st_size > _MAX_KEY_BYTES):
                    continue
                content = path.read_bytes()
            except OSError as error:
                raise ArtifactError(f"{path} of the release cannot be read: {error.strerror}") from None
            if _CARRIED.search(content) or hashlib.sha256(content).hexdigest() in names:
                raise ArtifactError(
                    f"{path} holds a key; a release that carries the key it is signed by proves nothing, take it out and "
                    "get keys another way"
                )


def _unreadable(error: OSError) -> None:
    raise ArtifactError(f"{error.filename} of the release cannot be read: {error.strerror}") from None


def _text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{path}: expected {what}, but it cannot be read: {error.strerror}") from None
