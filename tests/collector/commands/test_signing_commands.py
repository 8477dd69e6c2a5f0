from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evenfleet_shared import manifest as manifests
from fakes.stores import small_manifest, write_files

Run = Callable[..., Any]


@pytest.fixture
def release_dir(tmp_path: Path) -> Path:
    return write_files(tmp_path / "release", *small_manifest())


@pytest.fixture
def key(evenfleet: Run, tmp_path: Path) -> Path:
    path = tmp_path / "release.key"
    assert evenfleet("release", "keygen", "--out", path).code == 0
    return path


@pytest.fixture
def other(evenfleet: Run, tmp_path: Path) -> Path:
    path = tmp_path / "other.key"
    assert evenfleet("release", "keygen", "--out", path).code == 0
    return path


def test_key_pair_is_made_once_and_named(evenfleet: Run, tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    made = json.loads(evenfleet("release", "keygen", "--out", path, "--json").out)
    assert made["private"] == str(path)
    assert made["public"] == f"{path}.pub"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    again = evenfleet("release", "keygen", "--out", path)
    assert (again.code, again.out) == (2, "")
    assert "File exists; no key was made" in again.err
    assert path.read_bytes() == before


def test_signed_release_is_verified_with_the_public_key(evenfleet: Run, release_dir: Path, key: Path) -> None:
    digest = manifests.load(release_dir)[1]
    signed = evenfleet("release", "sign", release_dir, "--key", key)
    assert signed.code == 0
    assert signed.err == ""
    assert signed.out.startswith(f"{digest} is signed by key ")
    verify = ("release", "verify", release_dir, "--require-signature", "--trust", f"{key}.pub")
    told = evenfleet(*verify)
    assert told.code == 0
    assert told.out.startswith(digest)
    assert "which you trust" in told.out
    as_json = json.loads(evenfleet(*verify, "--json").out)
    assert as_json["intact"] is True
    assert len(as_json["signed_by"]) == 1
    assert as_json["unknown_keys"] == []


def test_keys_may_be_named_by_the_environment(
    evenfleet: Run, release_dir: Path, key: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evenfleet("release", "sign", release_dir, "--key", key)
    monkeypatch.setenv("EVENFLEET_TRUST", f"{other}.pub:{key}.pub")
    assert evenfleet("release", "verify", release_dir, "--require-signature").code == 0


def test_release_may_be_signed_by_several_keys(evenfleet: Run, release_dir: Path, key: Path, other: Path) -> None:
    for each in (key, other):
        assert evenfleet("release", "sign", release_dir, "--key", each).code == 0
    told = evenfleet("release", "verify", release_dir, "--trust", f"{key}.pub")
    assert told.code == 0
    assert told.out.count("which you trust") == 1
    assert told.out.count("is unknown: --trust names no such key") == 1
    both = evenfleet("release", "verify", release_dir, "--trust", key.parent)
    assert both.out.count("which you trust") == 2


def test_signature_that_is_required_and_missing_is_exit_1(
    evenfleet: Run, release_dir: Path, key: Path, other: Path
) -> None:
    require = ("release", "verify", release_dir, "--require-signature", "--trust", f"{key}.pub")
    unsigned = evenfleet(*require)
    assert (unsigned.code, unsigned.out) == (1, "")
    assert "is not signed; expected the signature of a key that --trust names" in unsigned.err
    evenfleet("release", "sign", release_dir, "--key", other)
    unknown = evenfleet(*require)
    assert (unknown.code, unknown.out) == (1, "")
    assert "is signed by unknown keys alone" in unknown.err
    assert evenfleet("release", "verify", release_dir, "--trust", f"{key}.pub").code == 0
    without = evenfleet("release", "verify", release_dir, "--require-signature")
    assert without.code == 2
    assert "expected a key that you trust" in without.err


def test_signature_that_nobody_checked_is_told_as_such(evenfleet: Run, release_dir: Path, key: Path) -> None:
    assert evenfleet("release", "verify", release_dir).out.splitlines()[1] == "not signed"
    evenfleet("release", "sign", release_dir, "--key", key)
    told = evenfleet("release", "verify", release_dir)
    assert told.code == 0
    assert "was not checked: --trust names the keys you trust" in told.out


def test_changed_manifest_of_a_signed_release_is_exit_1(evenfleet: Run, release_dir: Path, key: Path) -> None:
    evenfleet("release", "sign", release_dir, "--key", key)
    path = release_dir / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"digits-cnn", b"digits-cnm"))
    told = evenfleet("release", "verify", release_dir, "--trust", f"{key}.pub")
    assert (told.code, told.out) == (1, "")
    assert f"{path} was changed since it was signed" in told.err


def test_damaged_release_is_not_signed(evenfleet: Run, release_dir: Path, key: Path) -> None:
    (release_dir / "artifacts" / "int8.tflite").write_bytes(b"digits-cnn int9")
    refused = evenfleet("release", "sign", release_dir, "--key", key)
    assert refused.code == 1
    assert "int8.tflite has sha256" in refused.err
    assert not (release_dir / "signatures").exists()


def test_key_within_the_release_neither_signs_nor_is_trusted(evenfleet: Run, release_dir: Path) -> None:
    path = release_dir / "release.key"
    evenfleet("release", "keygen", "--out", path)
    refused = evenfleet("release", "sign", release_dir, "--key", path)
    assert refused.code == 2
    assert "lies in the release itself" in refused.err
    refused = evenfleet("release", "verify", release_dir, "--trust", f"{path}.pub")
    assert refused.code == 2
    assert "lies in the release itself" in refused.err
    for command in ("verify", "push"):
        refused = evenfleet("release", command, release_dir)
        assert refused.code == 1
        assert "release.key holds a key" in refused.err


def test_file_that_is_no_key_is_exit_2(evenfleet: Run, release_dir: Path, key: Path) -> None:
    for arguments in (("sign", release_dir, "--key", f"{key}.pub"), ("verify", release_dir, "--trust", key)):
        refused = evenfleet("release", *arguments)
        assert (refused.code, refused.out) == (2, "")
        assert "expected an Ed25519" in refused.err


def test_key_that_others_can_read_is_told(evenfleet: Run, release_dir: Path, key: Path) -> None:
    key.chmod(0o644)
    told = evenfleet("release", "sign", release_dir, "--key", key)
    assert told.code == 0
    assert "is open to others (mode 0644); chmod 600 it" in told.err
