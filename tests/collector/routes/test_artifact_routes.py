from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fakes.stores import file_ref

PAYLOAD = bytes(range(256)) * 16
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
URL = f"/api/v1/artifacts/{DIGEST}"


def kept(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "artifacts").iterdir()]


def test_artifact_that_was_put_is_got_whole_and_in_part(client: TestClient) -> None:
    assert client.head(URL).status_code == 404
    assert client.put(URL, content=PAYLOAD).status_code == 201
    whole = client.get(URL)
    assert whole.content == PAYLOAD
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert whole.headers["ETag"] == f'"{DIGEST}"'
    part = client.get(URL, headers={"Range": "bytes=4000-"})
    assert (part.status_code, part.content) == (206, PAYLOAD[4000:])
    assert part.headers["Content-Range"] == f"bytes 4000-4095/{len(PAYLOAD)}"
    head = client.head(URL)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, "4096", b"")


def test_download_goes_on_only_with_the_same_artifact(client: TestClient) -> None:
    client.put(URL, content=PAYLOAD)
    same = client.get(URL, headers={"Range": "bytes=4000-", "If-Range": f'"{DIGEST}"'})
    other = client.get(URL, headers={"Range": "bytes=4000-", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)
    assert client.get(URL, headers={"If-None-Match": f'"{DIGEST}"'}).status_code == 304
    assert client.get(URL, headers={"Range": "bytes=9999-"}).status_code == 416


def test_artifact_that_is_here_is_not_taken_again(client: TestClient) -> None:
    client.put(URL, content=PAYLOAD)
    assert client.put(URL, content=b"tampered").status_code == 200
    assert client.get(URL).content == PAYLOAD


def test_tampered_bytes_are_refused_and_leave_no_file(client: TestClient, tmp_path: Path) -> None:
    response = client.put(URL, content=PAYLOAD[:-1] + b"!")
    assert response.status_code == 422
    assert DIGEST in response.json()["detail"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("announced", [True, False])
def test_too_large_is_refused_and_leaves_no_file(client: TestClient, tmp_path: Path, announced: bool) -> None:
    large = bytes(200_000)
    response = client.put(URL, content=large if announced else iter([large[:99_999], large[99_999:]]))
    assert response.status_code == 413
    assert "100,000 bytes" in response.json()["detail"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "..", "A" * 64, "0" * 63, "0" * 65, f"{'0' * 64}%0A", "%00" * 64],
)
def test_name_that_is_no_digest_reaches_no_file(client: TestClient, tmp_path: Path, name: str) -> None:
    assert client.put(f"/api/v1/artifacts/{name}", content=b"x").status_code in {404, 405, 422}
    assert client.get(f"/api/v1/artifacts/{name}").status_code in {404, 422}
    assert kept(tmp_path) == []


def test_folder_that_cannot_be_written_is_told(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "artifacts").rmdir()
    response = client.put(URL, content=PAYLOAD)
    assert response.status_code == 500
    assert "cannot keep the artifact" in response.json()["detail"]


def test_release_is_taken_once_its_artifacts_are_here(client: TestClient) -> None:
    from evenfleet_shared import manifest as manifests
    from fakes.stores import small_manifest

    manifest, files = small_manifest()
    for file, payload in files.items():
        client.put(f"/api/v1/artifacts/{file_ref(file, payload).sha256}", content=payload).raise_for_status()
    payload = manifests.encode(manifest)
    answer = client.post("/api/v1/releases", content=payload)
    assert answer.status_code == 201
    assert answer.json()["release"] == manifests.digest(payload)
    assert client.get(f"/api/v1/artifacts/{manifests.digest(payload)}").content == payload
