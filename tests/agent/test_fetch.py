"""Downloads from a real HTTP server that misbehaves, in this process and in the real child."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from evenfleet_agent.fetch import UntrustedError, WrongContentError, check_fits, check_signed, fetch_release
from evenfleet_agent.fetcher import FetchOrder, FetchProcess, FetchResult
from evenfleet_shared import manifest as manifests
from evenfleet_shared import trust
from evenfleet_shared.errors import ArtifactError, ReleaseError
from evenfleet_shared.messages import ReleaseSignature
from evenfleet_shared.signature import PrivateKey
from fakes import tiny_models
from fakes.artifact_servers import ArtifactServer, answers, artifact_server, cuts_off, holds, serves
from fakes.disks import SyncedDisk
from fakes.stores import small_manifest

MANIFEST, FILES = small_manifest("float32", "int8")
# Large enough to be cut off in the middle.
BIG = bytes(range(256)) * 4096
VARIANTS = ("float32", "int8")


@dataclass
class Served:
    """A release on a server, and the slot that it is to be brought to."""

    server: ArtifactServer
    release: str
    payload: bytes
    slot: Path

    def fetch(self, variants: Sequence[str] = VARIANTS) -> None:
        fetch_release(self.server.url, self.release, variants, self.slot)

    def is_whole(self, variants: Sequence[str] = VARIANTS) -> bool:
        described, name = manifests.load(self.slot)
        golden = described.golden
        wanted = [described.variant(variant).artifact for variant in variants]
        for reference in (*wanted, golden.inputs, golden.labels, golden.outputs):
            manifests.check_file(self.slot / reference.file, reference)
        return name == self.release


@pytest.fixture
def server() -> Iterator[ArtifactServer]:
    with artifact_server() as server:
        yield server


@pytest.fixture
def served(server: ArtifactServer, tmp_path: Path) -> Served:
    return release_of(server, tmp_path / "slot")


def release_of(server: ArtifactServer, slot: Path, *, big: bytes = BIG) -> Served:
    described = msgspec.to_builtins(MANIFEST)
    for payload in FILES.values():
        server.add(payload)
    reference = described["golden"]["inputs"]
    reference["sha256"], reference["size_bytes"] = server.add(big), len(big)
    payload = manifests.encode(msgspec.convert(described, manifests.Manifest))
    slot.mkdir(exist_ok=True)
    return Served(server, server.add(payload), payload, slot)


def failing(served: Served, expected: type[Exception], match: str) -> None:
    with pytest.raises(expected, match=match):
        served.fetch()
    with pytest.raises(ReleaseError):
        manifests.load(served.slot)


def test_a_release_comes_whole(served: Served) -> None:
    served.fetch()

    assert served.is_whole()
    assert not list(served.slot.rglob("*.part"))


def test_only_the_wanted_variants_are_fetched(served: Served) -> None:
    served.fetch(("int8",))

    assert served.is_whole(("int8",))
    assert not (served.slot / "artifacts/float32.tflite").exists()


def test_what_is_there_is_not_fetched_again(served: Served) -> None:
    served.fetch(("int8",))
    served.server.asked.clear()

    served.fetch()

    assert served.server.paths == [MANIFEST.variant("float32").artifact.sha256]


def test_another_release_in_the_slot_makes_way(served: Served) -> None:
    served.fetch()
    other = release_of(served.server, served.slot, big=b"small")
    other.fetch()

    assert other.is_whole()
    assert not served.is_whole()


def test_a_slot_is_not_taken_for_whole_while_another_release_is_on_its_way(served: Served) -> None:
    """A power cut in between: the manifest of the release before must not vouch for files of the next one."""
    served.fetch()
    other = release_of(served.server, served.slot, big=b"small")
    served.server.faults = [serves(other.payload), answers(500)]

    with pytest.raises(OSError, match="500"):
        other.fetch()

    with pytest.raises(ReleaseError):
        manifests.load(served.slot)


def test_a_release_that_came_outlives_a_power_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SyncedDisk(monkeypatch)
    served.fetch()

    files = [path for path in served.slot.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert [path.name for path in files if not disk.outlives_a_power_cut(path)] == []


def test_what_an_earlier_process_downloaded_whole_is_brought_to_disk_all_the_same(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between the last byte and the sync."""
    (served.slot / "golden").mkdir()
    (served.slot / "manifest.json.part").write_bytes(served.payload)
    (served.slot / "golden/inputs.npy.part").write_bytes(BIG)
    disk = SyncedDisk(monkeypatch)

    served.fetch()

    assert manifests.digest(BIG) not in served.server.paths
    for file in ("golden/inputs.npy", "manifest.json"):
        assert disk.outlives_a_power_cut(served.slot / file)


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(served: Served) -> None:
    served.server.faults = [serves(served.payload), cuts_off(300_000)]
    failing(served, OSError, f"{len(BIG) - 300_000} bytes early")
    served.server.asked.clear()

    served.fetch()

    assert served.is_whole()
    assert (manifests.digest(BIG), "bytes=300000-") in served.server.asked
    assert served.release not in served.server.paths


def test_a_server_without_ranges_is_asked_for_all_of_it(served: Served) -> None:
    served.server.ranges = False
    served.server.faults = [serves(served.payload), cuts_off(300_000)]
    failing(served, OSError, "early")

    served.fetch()

    assert served.is_whole()


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(BIG), b"x" * (len(BIG) + 5)])
def test_what_an_earlier_try_left_damaged_is_not_held_against_the_release(served: Served, left: bytes) -> None:
    """A power cut leaves zeros at the end of a file. Trying again helps, so the release must not be refused for good."""
    (served.slot / "manifest.json.part").write_bytes(served.payload)
    (served.slot / "golden").mkdir()
    (served.slot / "golden/inputs.npy.part").write_bytes(left)

    for _ in range(2):
        try:
            served.fetch()
            break
        except OSError as error:
            assert "earlier" in str(error)  # noqa: PT017 - one failed try is allowed
    assert served.is_whole()


def test_a_manifest_that_was_cut_off_is_tried_again_and_not_refused(served: Served) -> None:
    served.server.faults = [cuts_off(100)]
    failing(served, OSError, "bytes early")

    served.fetch()

    assert served.is_whole()


@pytest.mark.parametrize("status", [404, 403, 500, 503, 301])
def test_an_answer_that_is_no_file_is_tried_again(served: Served, status: int) -> None:
    served.server.faults = [answers(status)]
    failing(served, OSError, str(status))

    served.fetch()
    assert served.is_whole()


def test_nobody_there_is_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    with pytest.raises(OSError, match="refused"):
        fetch_release(url, "0" * 64, (), tmp_path)


def test_another_manifest_than_the_one_named_is_not_taken(served: Served) -> None:
    served.server.faults = [serves(served.payload + b" ")]

    failing(served, WrongContentError, "served another file")
    served.fetch()
    assert served.is_whole()


@pytest.mark.parametrize("other", [b"x" * len(BIG), BIG[:-1] + b"x"])
def test_an_artifact_that_is_not_the_one_named_is_not_taken_and_not_kept(served: Served, other: bytes) -> None:
    served.server.faults = [serves(served.payload), serves(other)]

    failing(served, WrongContentError, r"served another file as golden/inputs\.npy; its sha256 is")
    assert not list(served.slot.glob("golden/*"))


def test_no_more_of_an_artifact_is_taken_than_was_said(served: Served) -> None:
    served.server.faults = [serves(served.payload), serves(BIG + b"more" * 100_000)]
    served.fetch()

    assert (served.slot / "golden/inputs.npy").stat().st_size == len(BIG)


def test_a_file_that_was_tampered_with_on_disk_is_fetched_again(served: Served) -> None:
    served.fetch()
    (served.slot / "artifacts/int8.tflite").write_bytes(b"tampered")

    served.fetch()

    assert served.is_whole()


def test_a_variant_that_the_release_lacks_is_refused(served: Served) -> None:
    with pytest.raises(ArtifactError, match="no variant 'int4'"):
        served.fetch(("int4",))


@pytest.mark.parametrize(
    "file",
    [
        "../evil",
        "/etc/evil",
        "artifacts/../../evil",
        "artifacts//evil",
        "elsewhere/evil",
        "artifacts/.evil",
        "artifacts/a\n",
    ],
)
def test_a_manifest_that_points_outside_is_refused_and_nothing_is_written(
    server: ArtifactServer, tmp_path: Path, file: str
) -> None:
    described = msgspec.to_builtins(MANIFEST)
    described["golden"]["inputs"]["file"] = file
    release = server.add(msgspec.json.encode(described))
    slot = tmp_path / "a" / "b"
    slot.mkdir(parents=True)

    with pytest.raises(ReleaseError, match="not a release manifest"):
        fetch_release(server.url, release, VARIANTS, slot)

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json.part"]


@pytest.mark.parametrize("payload", [b"", b"null", b"[" * 10_000, b"\xff\xfe", b'{"schema": "release/2"}'])
def test_bytes_that_are_no_manifest_are_refused(server: ArtifactServer, tmp_path: Path, payload: bytes) -> None:
    release = server.add(payload)

    with pytest.raises(ReleaseError):
        fetch_release(server.url, release, (), tmp_path)


# who signed it


def signed_by(key: PrivateKey, release: str) -> ReleaseSignature:
    return ReleaseSignature(key=key.public.id, signature=key.sign(release).signature)


OURS, THEIRS = PrivateKey(b"o" * 32), PrivateKey(b"t" * 32)
RELEASE, OTHER = "1" * 64, "2" * 64


def test_a_device_that_trusts_no_key_runs_what_it_is_told() -> None:
    check_signed(RELEASE, (), ())


def test_one_signature_of_a_trusted_key_among_others_is_enough() -> None:
    check_signed(RELEASE, (signed_by(THEIRS, RELEASE), signed_by(OURS, RELEASE)), (OURS.public,))


@pytest.mark.parametrize(
    ("signatures", "why"),
    [
        ((), "none at all"),
        ((signed_by(THEIRS, RELEASE),), "1 of other keys"),
        ((signed_by(OURS, OTHER),), "does not hold"),
        ((ReleaseSignature(key=OURS.public.id, signature=THEIRS.sign(RELEASE).signature),), "does not hold"),
        ((ReleaseSignature(key=OURS.public.id, signature="not base64"),), "does not hold"),
    ],
)
def test_a_release_that_no_trusted_key_has_signed_is_refused(
    signatures: tuple[ReleaseSignature, ...], why: str
) -> None:
    with pytest.raises(UntrustedError, match=why):
        check_signed(RELEASE, signatures, (OURS.public,))


def test_nothing_is_asked_of_the_server_before_the_signature_holds(served: Served, tmp_path: Path) -> None:
    public = trust.write_keys(tmp_path / "release.key", OURS)
    fetcher = FetchProcess()
    unsigned = order(served.server.url, served.release, VARIANTS, served.slot)
    fetcher.start(replace(unsigned, trusted_keys=(str(public),)))

    result = result_of(fetcher)
    assert (result.ok, result.cause) == (False, "release")
    assert "not signed by a key that this device trusts" in result.reason
    assert served.server.asked == []

    fetcher.start(replace(unsigned, trusted_keys=(str(public),), signatures=(signed_by(OURS, served.release),)))
    assert result_of(fetcher) == FetchResult(ok=True)


def test_a_key_file_that_cannot_be_read_is_not_held_against_the_release(served: Served, tmp_path: Path) -> None:
    fetcher = FetchProcess()
    wanted = order(served.server.url, served.release, VARIANTS, served.slot)
    fetcher.start(replace(wanted, trusted_keys=(str(tmp_path / "missing.pub"),)))

    result = result_of(fetcher)
    assert (result.ok, result.cause) == (False, "link")
    assert result.reason.startswith("release.trusted_keys: ")


# the child


def order(url: str, release: str, variants: Sequence[str], directory: Path) -> FetchOrder:
    return FetchOrder(url=url, release=release, variants=tuple(variants), directory=str(directory))


def result_of(fetcher: FetchProcess, timeout_s: float = 20.0) -> FetchResult:
    deadline_s = time.monotonic() + timeout_s
    while (result := fetcher.result()) is None:
        descriptor = fetcher.fileno()
        assert descriptor is not None
        select.select([descriptor], [], [], 1.0)
        assert time.monotonic() < deadline_s
    return result


def test_the_child_brings_a_release_and_says_so(served: Served) -> None:
    fetcher = FetchProcess()
    assert (fetcher.fileno(), fetcher.result()) == (None, None)

    fetcher.start(order(served.server.url, served.release, VARIANTS, served.slot))

    assert result_of(fetcher) == FetchResult(ok=True)
    assert served.is_whole()
    assert (fetcher.fileno(), fetcher.result()) == (None, None)


@pytest.mark.parametrize("cause", ["link", "content", "release"])
def test_the_child_says_by_whose_fault_it_failed(served: Served, cause: str) -> None:
    release, url = served.release, served.server.url
    if cause == "content":
        served.server.faults = [serves(b"<html>Welcome to our hotel</html>")]
    elif cause == "release":
        release = served.server.add(b"not a manifest")
    else:
        url = "http://[::1"  # no address at all
    fetcher = FetchProcess()
    fetcher.start(order(url, release, VARIANTS, served.slot))

    result = result_of(fetcher)

    assert (result.ok, result.cause) == (False, cause)
    assert "\n" not in result.reason
    assert "no word" not in result.reason


def test_a_child_that_is_killed_is_a_failure_to_be_tried_again(served: Served) -> None:
    served.server.faults = [serves(served.payload), holds(served.server, 100_000)]
    fetcher = FetchProcess()
    fetcher.start(order(served.server.url, served.release, VARIANTS, served.slot))
    assert served.server.waiting.wait(timeout=20)
    assert fetcher._child is not None
    os.kill(fetcher._child.pid, signal.SIGKILL)

    result = result_of(fetcher)
    assert (result.ok, result.cause) == (False, "link")
    assert "-9" in result.reason

    served.server.go_on.set()
    fetcher.start(order(served.server.url, served.release, VARIANTS, served.slot))
    assert result_of(fetcher).ok
    assert served.is_whole()


def test_a_download_that_is_given_up_leaves_no_child_and_no_result(served: Served) -> None:
    served.server.faults = [holds(served.server, 10)]
    fetcher = FetchProcess()
    fetcher.start(order(served.server.url, served.release, VARIANTS, served.slot))
    assert served.server.waiting.wait(timeout=20)
    assert fetcher._child is not None
    pid = fetcher._child.pid

    fetcher.stop()

    assert fetcher.result() is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    fetcher.stop()


def test_a_child_that_cannot_be_started_leaves_nothing_under_way(tmp_path: Path) -> None:
    fetcher = FetchProcess(str(tmp_path / "no-python"))
    with pytest.raises(FileNotFoundError):
        fetcher.start(order("http://x", "0" * 64, (), tmp_path))

    assert (fetcher.fileno(), fetcher.result()) == (None, None)


# what this device's runtime can load


def fitting(tmp_path: Path, **artifacts: Path) -> FetchOrder:
    """Return an order for a release of .tflite files, which lies in its slot already."""
    tmp_path.mkdir()
    described, _ = small_manifest(*artifacts)
    variants = tuple(
        replace(variant, artifact=replace(variant.artifact, file=f"artifacts/{variant.name}.tflite"))
        for variant in described.variants
    )
    (tmp_path / "artifacts").mkdir()
    for name, path in artifacts.items():
        (tmp_path / "artifacts" / f"{name}.tflite").write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_bytes(manifests.encode(replace(described, variants=variants)))
    return replace(order("http://127.0.0.1:9", RELEASE, tuple(artifacts), tmp_path), runtime="litert")


def test_a_release_of_which_the_runtime_can_load_nothing_is_refused_before_it_takes_the_others_place(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    known, unknown = (
        tiny_models.classifier(tmp_path / "a.tflite"),
        tiny_models.classifier(tmp_path / "b.tflite", version=99),
    )

    check_fits(fitting(tmp_path / "both", float32=known, int8=unknown))
    with pytest.raises(ArtifactError, match=r"can run no variant of release 111111111111….*FULLY_CONNECTED"):
        check_fits(fitting(tmp_path / "one", int8=unknown))
    # Of a runtime that is not installed here nothing is known.
    check_fits(replace(fitting(tmp_path / "other", int8=unknown), runtime="tflite"))
