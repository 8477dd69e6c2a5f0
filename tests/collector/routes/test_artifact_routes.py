from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from evenfleet_collector.artifacts import ArtifactFolder
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
    for known in (f'"{DIGEST}"', f'"other", W/"{DIGEST}"', "*"):
        assert client.get(URL, headers={"If-None-Match": known}).status_code == 304
    assert client.get(URL, headers={"Range": "bytes=9999-"}).status_code == 416


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-9", 206, PAYLOAD[:10]),
        ("bytes=-5", 206, PAYLOAD[-5:]),
        ("bytes=0-999999", 206, PAYLOAD),
        ("bytes=0-1,9999-", 206, PAYLOAD[:2]),
        ("bytes=5-2", 200, PAYLOAD),
        ("bytes=a-b", 200, PAYLOAD),
        ("bytes=", 200, PAYLOAD),
        ("items=0-1", 200, PAYLOAD),
        (f"bytes={','.join(f'{first}-{first}' for first in range(0, 4000, 2))}", 200, PAYLOAD),
    ],
)
def test_range_that_makes_no_sense_is_answered_with_the_whole(
    client: TestClient, asked: str, status: int, content: bytes
) -> None:
    """As RFC 9110 has it: a range is a wish, and what is not understood is ignored."""
    client.put(URL, content=PAYLOAD)
    answer = client.get(URL, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)


@pytest.mark.parametrize("asked", ["bytes=4096-", "bytes=9999-99999", "bytes=-0", "bytes=9999-,99999-"])
def test_range_beyond_the_end_is_a_problem_that_tells_the_size(client: TestClient, asked: str) -> None:
    client.put(URL, content=PAYLOAD)
    answer = client.get(URL, headers={"Range": asked})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */4096")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "expected a part of 4,096 bytes" in answer.json()["detail"]
    assert client.get(URL, headers={"Range": asked, "If-Range": '"other"'}).content == PAYLOAD


def put_in_part(client: TestClient, payload: bytes, *, silent: bool = False) -> int:
    """Begin an upload and break it off, by hanging up or by saying nothing more; returns the status."""
    scope = {
        "type": "http", "method": "PUT", "path": URL, "raw_path": URL.encode(), "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"testserver")], "server": ("testserver", 80), "client": ("10.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    arrives = iter([{"type": "http.request", "body": payload, "more_body": True}])
    sent: list[Any] = []

    async def receive() -> Any:
        for message in arrives:
            return message
        if silent:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    status: int = sent[0]["status"]
    return status


def test_upload_that_is_broken_off_leaves_no_artifact_and_no_traceback(
    client: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert put_in_part(client, PAYLOAD[:99]) == 400
    assert client.get(URL).status_code == 404
    (part,) = kept(tmp_path)
    assert part.startswith(f".upload-{DIGEST}")
    assert caplog.records == []


@pytest.mark.parametrize("silent", [False, True])
def test_upload_goes_on_where_it_stopped(client: TestClient, tmp_path: Path, silent: bool) -> None:
    assert client.head(URL).headers["Upload-Offset"] == "0"
    parts = client.app.state.parts  # type: ignore[attr-defined]
    client.app.state.parts = replace(  # type: ignore[attr-defined]
        parts, artifacts=ArtifactFolder(tmp_path / "artifacts", max_idle_s=0.05)
    )
    put_in_part(client, PAYLOAD[:1000], silent=silent)
    known = client.head(URL)
    assert (known.status_code, known.headers["Upload-Offset"]) == (404, "1000")

    answer = client.put(URL, content=PAYLOAD[1000:], headers={"Content-Range": "bytes 1000-4095/4096"})

    assert answer.status_code == 201
    assert client.get(URL).content == PAYLOAD
    assert kept(tmp_path) == [DIGEST]


@pytest.mark.parametrize(
    ("place", "status", "told"),
    [
        ("bytes 999-4095/4096", 409, "go on at byte 1,000, found 999"),
        ("bytes 1001-4095/4096", 409, "go on at byte 1,000, found 1,001"),
        ("bytes 1000-2000/4096", 400, "expected 'bytes OFFSET-LAST/SIZE' that reaches to the end"),
        ("bytes 1000-4095/*", 400, "found 'bytes 1000-4095/*'"),
        ("bytes 4096-4095/4096", 400, "reaches to the end"),
        ("octets 0-1/2", 400, "reaches to the end"),
        ("bytes 1000-199999/200000", 413, "100,000 bytes"),
    ],
)
def test_upload_that_goes_on_elsewhere_is_refused_and_what_came_stays(
    client: TestClient, place: str, status: int, told: str
) -> None:
    put_in_part(client, PAYLOAD[:1000])
    first = int(place.split()[1].split("-", maxsplit=1)[0])
    size = 4096 if "200000" not in place else 200_000
    answer = client.put(URL, content=bytes(max(size - first, 0)), headers={"Content-Range": place})
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert told in answer.json()["detail"]
    assert client.head(URL).headers["Upload-Offset"] == "1000"
    assert client.put(URL, content=PAYLOAD).status_code == 201


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
