"""Ed25519 signatures of releases, and the keys that make and check them, as values.

What is signed is the release's digest behind a fixed opening. The manifest names every other file by its sha256, so one
signature over the manifest's digest is over all of them. Leaves to `trust` where signatures and keys lie.

* A signature has one form only, byte by byte, so a change of any byte of it is found.
* PyNaCl is loaded when a key is used and not before, so that whoever only reads signatures need not have it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import ArtifactError, ConfigError
from evenfleet_shared.messages import Digest

# Before the digest, so that what is signed here can never pass for a signature of anything else.
_CONTEXT: Final = b"evenfleet-release-signature/1\n"
_MAX_BYTES: Final = 4096
# RFC 8410: with Ed25519 both structures are 32 bytes behind an opening that never changes.
_PRIVATE_OPENING: Final = bytes.fromhex("302e020100300506032b657004220420")
_PUBLIC_OPENING: Final = bytes.fromhex("302a300506032b6570032100")
KEY_BYTES: Final = 32
_PEM: Final = re.compile(r"-----BEGIN (?P<label>[A-Z0-9 ]+)-----\s+(?P<body>[A-Za-z0-9+/=\s]*)-----END (?P=label)-----")

KeyId = Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature; `key` names the key that made it, and is not that key."""

    schema: Literal["release-signature/1"] = "release-signature/1"
    release: Digest
    key: KeyId
    # 64 bytes in base64: the last digit holds two bits of them, and zeros.
    signature: Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{85}[AQgw]==$(?!\n)")]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that somebody trusts."""

    raw: bytes

    @property
    def id(self) -> str:
        """Return the key's name."""
        return hashlib.sha256(self.raw).hexdigest()

    def signed(self, release: str, signature: Signature) -> bool:
        """Return whether `signature` is this key's, over `release`."""
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        try:
            VerifyKey(self.raw).verify(signed_bytes(release), base64.b64decode(signature.signature))
        except BadSignatureError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs."""

    seed: bytes

    def __repr__(self) -> str:
        """Keep the seed out of logs and tracebacks."""
        return "PrivateKey(…)"

    @property
    def public(self) -> PublicKey:
        """Return the key that its signatures are checked with."""
        from nacl.signing import SigningKey

        return PublicKey(bytes(SigningKey(self.seed).verify_key))

    def sign(self, release: str) -> Signature:
        """Sign a release, by its digest; the same key and release give the same bytes."""
        from nacl.signing import SigningKey

        made = SigningKey(self.seed).sign(signed_bytes(release)).signature
        return Signature(release=release, key=self.public.id, signature=base64.b64encode(made).decode("ascii"))


def signed_bytes(release: str) -> bytes:
    r"""Return what is signed of a release.

    >>> signed_bytes("9f2c")
    b'evenfleet-release-signature/1\n9f2c\n'
    """
    return _CONTEXT + release.encode("ascii") + b"\n"


def encode(signature: Signature) -> bytes:
    """Return the one form of a signature: JSON, sorted keys, no spaces."""
    return msgspec.json.encode(signature, order="sorted")


def decode(payload: bytes, source: str) -> Signature:
    """Read a signature.

    Raises:
        ArtifactError: It is none, or not in its one form; `source` is named.
    """
    if len(payload) > _MAX_BYTES:
        raise ArtifactError(f"{source}: {len(payload)} bytes, a signature has at most {_MAX_BYTES}")
    try:
        found = msgspec.json.decode(payload, type=Signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{source} is not a signature of a release: {error}") from None
    if encode(found) != payload:
        raise ArtifactError(
            f"{source} is not in the form that 'evenfleet release sign' writes; it was changed, do not use it"
        )
    return found


def to_pem(key: PublicKey | PrivateKey) -> str:
    """Return a key as openssl writes it: SubjectPublicKeyInfo, or PKCS #8, in PEM."""
    if isinstance(key, PublicKey):
        label, structure = "PUBLIC KEY", _PUBLIC_OPENING + key.raw
    else:
        label, structure = "PRIVATE KEY", _PRIVATE_OPENING + key.seed
    return f"-----BEGIN {label}-----\n{base64.b64encode(structure).decode('ascii')}\n-----END {label}-----\n"


def public_key(pem: str, source: str) -> PublicKey:
    """Read a public key.

    Raises:
        ConfigError: `pem` is none; `source` is named.
    """
    return PublicKey(_key(pem, source, "PUBLIC KEY", _PUBLIC_OPENING))


def private_key(pem: str, source: str) -> PrivateKey:
    """Read a private key: one of `to_pem`, or of ``openssl genpkey -algorithm ed25519``.

    Raises:
        ConfigError: `pem` is none; `source` is named.
    """
    return PrivateKey(_key(pem, source, "PRIVATE KEY", _PRIVATE_OPENING))


def _key(pem: str, source: str, label: str, opening: bytes) -> bytes:
    """Return the 32 bytes of the one key that `pem` holds."""
    expected = f"{source}: expected an Ed25519 {label.lower()} in PEM"
    found = list(_PEM.finditer(pem))
    if len(found) != 1:
        raise ConfigError(f"{expected}, found {'several' if found else 'none'}")
    if found[0]["label"] != label:
        hint = ""
        if found[0]["label"] == "ENCRYPTED PRIVATE KEY":
            hint = "; 'openssl pkey -in FILE -out KEY' decrypts it"
        elif found[0]["label"] == "PRIVATE KEY":
            hint = "; its public key lies beside it, in KEY.pub"
        raise ConfigError(f"{expected}, found one that is called {found[0]['label']}{hint}")
    try:
        structure = base64.b64decode("".join(found[0]["body"].split()), validate=True)
    except binascii.Error:
        structure = b""
    if len(structure) != len(opening) + KEY_BYTES or not structure.startswith(opening):
        raise ConfigError(f"{expected}, found a key of another kind, or a damaged one")
    return structure[len(opening) :]
