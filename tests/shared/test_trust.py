"""A release that is signed: whatever is changed in it is found and named, and no key of its own speaks for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenfleet_shared import manifest as manifests
from evenfleet_shared import signature as signatures
from evenfleet_shared import trust
from evenfleet_shared.errors import ArtifactError, ConfigError
from evenfleet_shared.signature import PrivateKey
from evenfleet_shared.trust import check
from fakes.tiny_release import write_release

DOCS = Path(__file__).parents[2] / "docs/operations.md"
OURS = PrivateKey(bytes(range(32)))
THEIRS = PrivateKey(bytes(32))


def sign(release: Path, *keys: PrivateKey) -> list[Path]:
    digest = manifests.load(release)[1]
    return [trust.write(release, key.sign(digest)) for key in keys]


def files_of(release: Path) -> list[Path]:
    return sorted(path for path in release.rglob("*") if path.is_file())


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = write_release(tmp_path_factory.mktemp("signed"))
    sign(release, OURS)
    return release


def test_signature_by_a_trusted_key_is_told_from_one_by_a_key_nobody_knows(release: Path) -> None:
    sign(release, OURS, THEIRS)
    checked = check(release, [OURS.public])
    assert checked.trusted == (OURS.public.id,)
    assert checked.unknown == (THEIRS.public.id,)
    assert (checked.manifest, checked.digest) == manifests.load(release)


def test_release_without_a_signature_is_checked_all_the_same(release: Path) -> None:
    checked = check(release, [OURS.public])
    assert checked.trusted == checked.unknown == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_change_of_any_byte_of_any_file_is_found_and_the_file_named(signed: Path, data: Any) -> None:
    path = data.draw(st.sampled_from(files_of(signed)))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[position] ^ data.draw(st.integers(1, 255))
    try:
        path.write_bytes(whole[:position] + bytes([flipped]) + whole[position + 1 :])
        with pytest.raises(ArtifactError) as found:
            check(signed, [OURS.public])
        assert str(path) in str(found.value)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("bits", [1, 0x20, 0xFF])
def test_change_of_any_byte_of_a_signature_is_found_and_its_file_named(signed: Path, bits: int) -> None:
    (path,) = (signed / "signatures").iterdir()
    whole = path.read_bytes()
    try:
        for position, byte in enumerate(whole):
            path.write_bytes(whole[:position] + bytes([byte ^ bits]) + whole[position + 1 :])
            with pytest.raises(ArtifactError) as found:
                check(signed, [OURS.public])
            assert str(path) in str(found.value)
    finally:
        path.write_bytes(whole)


def test_manifest_that_was_changed_is_named_though_no_key_is_at_hand(release: Path) -> None:
    sign(release, OURS)
    path = release / manifests.MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"tina"'))
    with pytest.raises(ArtifactError, match=r"manifest.json was changed: the signature is of release"):
        check(release)
    with pytest.raises(ArtifactError, match=rf"^{path} was changed since it was signed"):
        check(release, [OURS.public])


def test_signature_of_another_release_does_not_pass(release: Path) -> None:
    digest = manifests.load(release)[1]
    other = OURS.sign("0" * 64)
    trust.write(release, signatures.Signature(release=digest, key=other.key, signature=other.signature))
    with pytest.raises(ArtifactError, match="was changed or forged"):
        check(release, [OURS.public])


def test_signature_of_the_bare_digest_does_not_pass(release: Path) -> None:
    """What else the key signs, with whatever digest in it, is no signature of a release."""
    from nacl.signing import SigningKey

    digest = manifests.load(release)[1]
    made = SigningKey(OURS.seed).sign(digest.encode()).signature
    bare = base64.b64encode(made).decode()
    trust.write(release, signatures.Signature(release=digest, key=OURS.public.id, signature=bare))
    with pytest.raises(ArtifactError, match="was changed or forged"):
        check(release, [OURS.public])


@pytest.mark.parametrize(
    "where", ["key.pub", "golden/key.pub", "signatures/key.pub", ".hidden/key", "artifacts/float32.tflite.pub"]
)
@pytest.mark.parametrize("form", ["pem", "raw", "private"])
def test_release_that_carries_the_key_it_is_signed_by_is_refused(release: Path, where: str, form: str) -> None:
    sign(release, OURS)
    trust.write_keys(release.parent / "ours", OURS)
    path = release / where
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        {
            "pem": (release.parent / "ours.pub").read_bytes(),
            "raw": OURS.public.raw,
            "private": (release.parent / "ours").read_bytes(),
        }[form]
    )
    for trusted in ([], [OURS.public]):
        with pytest.raises(ArtifactError, match=f"^{path} holds a key"):
            check(release, trusted)


def test_key_that_lies_in_the_release_is_not_taken_for_trusted(release: Path, tmp_path: Path) -> None:
    sign(release, OURS)
    trust.write_keys(release / "ours", OURS)
    (tmp_path / "elsewhere.pub").symlink_to(release / "ours.pub")
    for given_path in (release / "ours.pub", release, tmp_path / "elsewhere.pub"):
        with pytest.raises(ConfigError, match="lies in the release itself"):
            trust.read_trusted([given_path], release)


@pytest.mark.parametrize("name", ["notes.txt", "artifacts/other.tflite", "golden/.x", "signatures/a.json"])
def test_file_that_the_manifest_does_not_name_is_named(release: Path, name: str) -> None:
    (release / "signatures").mkdir()
    (release / name).write_bytes(b"hello")
    with pytest.raises(ArtifactError, match=f"holds what its manifest does not name: {name}; expected"):
        check(release)


def test_folders_that_belong_to_no_release_are_named(release: Path, tmp_path: Path) -> None:
    for name in "abcd":
        (release / name).mkdir()
    with pytest.raises(ArtifactError, match=r"does not name: a/, b/, c/ and 1 more; expected"):
        check(release)


def test_folder_behind_a_link_is_not_passed_over(release: Path, tmp_path: Path) -> None:
    (release / "golden").rename(tmp_path / "golden")
    (release / "golden").symlink_to(tmp_path / "golden")
    with pytest.raises(ArtifactError, match="does not name: golden/; expected"):
        check(release)


def test_signing_twice_gives_the_same_bytes(release: Path) -> None:
    (path,) = sign(release, OURS)
    first = path.read_bytes()
    assert sign(release, OURS) == [path]
    assert path.read_bytes() == first
    assert json.loads(first)["key"] == path.stem == hashlib.sha256(OURS.public.raw).hexdigest()


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"null", b"\xff", b"[" * 5000, b'{"schema":"release-signature/2"}'],
)
def test_what_is_no_signature_is_told_with_its_file(payload: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^x\.json"):
        signatures.decode(payload, "x.json")


@given(payload=st.binary() | st.text().map(str.encode))
def test_decoding_anything_gives_a_signature_or_an_error_of_ours(payload: bytes) -> None:
    with pytest.raises(ArtifactError):
        signatures.decode(payload, "it")


def test_signature_in_other_words_is_refused() -> None:
    written = signatures.encode(OURS.sign("0" * 64))
    assert signatures.encode(signatures.decode(written, "it")) == written
    for other in (written + b"\n", json.dumps(json.loads(written)).encode(), written[:-1] + b',"x":1}'):
        with pytest.raises(ArtifactError, match="it is not in the form"):
            signatures.decode(other, "it")


def test_private_key_is_of_its_owner_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        public = trust.write_keys(tmp_path / "release.key", OURS)
    finally:
        os.umask(umask)
    assert public == tmp_path / "release.key.pub"
    assert stat.S_IMODE((tmp_path / "release.key").stat().st_mode) == 0o600
    assert trust.read_private_key(tmp_path / "release.key") == OURS
    assert trust.read_public_key(public) == OURS.public
    with pytest.raises(ConfigError, match=r"release.key: File exists; no key was made"):
        trust.write_keys(tmp_path / "release.key", THEIRS)
    (tmp_path / "release.key").unlink()
    with pytest.raises(ConfigError, match=r"release.key.pub: File exists; no key was made"):
        trust.write_keys(tmp_path / "release.key", THEIRS)
    assert not (tmp_path / "release.key").exists()
    assert trust.read_public_key(public) == OURS.public


def test_two_keys_are_two() -> None:
    assert trust.new_private_key() != trust.new_private_key()
    assert "seed" not in repr(trust.new_private_key())


PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "found none"),
        ("ssh-ed25519 AAAAC3Nz me", "found none"),
        (PEM.format("PUBLIC KEY", "MCowBQYDK2VwAyEA") * 2, "found several"),
        (PEM.format("PUBLIC KEY", "MCowBQYDK2VwAyEA"), "of another kind, or a damaged one"),
        (PEM.format("PUBLIC KEY", "A==="), "of another kind, or a damaged one"),
        (PEM.format("PUBLIC KEY", "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"), "of another kind"),
        (PEM.format("PRIVATE KEY", "MCowBQYDK2VwAyEA"), "called PRIVATE KEY; its public key lies beside it"),
        (PEM.format("ENCRYPTED PRIVATE KEY", "MCow"), "'openssl pkey -in FILE -out KEY' decrypts it"),
    ],
)
def test_what_is_no_public_key_is_told_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.pub").write_text(text)
    with pytest.raises(ConfigError, match=rf"a.pub: expected an Ed25519 public key in PEM.*{told}"):
        trust.read_trusted([tmp_path], tmp_path / "release")


def test_trusted_keys_are_the_public_ones_of_a_folder(tmp_path: Path) -> None:
    release = tmp_path / "release"
    with pytest.raises(ConfigError, match="found none"):
        trust.read_trusted([tmp_path], release)
    with pytest.raises(ConfigError, match="No such file"):
        trust.read_trusted([tmp_path / "none.pub"], release)
    trust.write_keys(tmp_path / "a", OURS)
    trust.write_keys(tmp_path / "b", THEIRS)
    assert trust.read_trusted([tmp_path], release) == (OURS.public, THEIRS.public)
    assert trust.read_trusted([tmp_path / "b.pub"], release) == (THEIRS.public,)


def test_library_of_signatures_is_not_loaded_until_a_key_is_used(signed: Path) -> None:
    program = (
        "import sys, pathlib; from evenfleet_shared import trust\n"
        "assert len(trust.check(pathlib.Path(sys.argv[1])).unknown) == 1\n"
        "assert 'nacl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(signed)], check=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
class TestOpenssl:
    """Another program, which shares no code with ours."""

    def run(self, *arguments: str | Path) -> bytes:
        return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True).stdout

    def test_openssl_finds_our_signature_good_and_another_bad_as_the_docs_say(
        self, release: Path, tmp_path: Path
    ) -> None:
        blocks = re.findall(r"^```sh\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        (recipe,) = [block for block in blocks if "pkeyutl" in block]
        trust.write_keys(tmp_path / "release.key", OURS)
        sign(release, OURS)

        def follow() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(["sh", "-c", recipe], cwd=release.parent, capture_output=True, check=False)

        assert b"Signature Verified Successfully" in follow().stdout
        path = release / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"tina"'))
        assert follow().returncode != 0

    def test_key_of_openssl_signs_as_openssl_does(self, tmp_path: Path) -> None:
        self.run("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key")
        self.run("pkey", "-in", tmp_path / "key", "-pubout", "-out", tmp_path / "key.pub")
        (tmp_path / "message").write_bytes(signatures.signed_bytes("0" * 64))
        made = self.run("pkeyutl", "-sign", "-inkey", tmp_path / "key", "-rawin", "-in", tmp_path / "message")
        key = trust.read_private_key(tmp_path / "key")
        assert key.public == trust.read_public_key(tmp_path / "key.pub")
        assert base64.b64decode(key.sign("0" * 64).signature) == made
