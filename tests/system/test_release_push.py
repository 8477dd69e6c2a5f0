"""A signed release on its way to a real collector, which is killed in the middle of a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.cables import cable_to
from fakes.collectors import WAIT_S, Serving, serving
from fakes.stores import small_manifest, write_files

pytestmark = pytest.mark.processes

MIB = 1 << 20


def evenfleet(*arguments: str | Path, url: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evenfleet_collector", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | {"EVENFLEET_URL": url},
    )


def test_push_goes_on_after_the_collector_was_killed_in_the_middle_of_a_file(tmp_path: Path) -> None:
    release = write_files(tmp_path / "release", *small_manifest("float32", artifact_bytes=24 * MIB))
    key = tmp_path / "release.key"
    for arguments in (("keygen", "--out", key), ("sign", release, "--key", key)):
        assert evenfleet("release", *arguments).returncode == 0
    with serving(tmp_path / "data") as collector, cable_to(collector.url) as cable:
        cable.breaks_after = [20 * MIB]
        cable.at_break = collector.process.kill
        broken = evenfleet("release", "push", release, url=cable.url)
        assert (broken.returncode, broken.stdout) == (1, "")
        assert "pushed again within a day, it goes on there" in broken.stderr

    with serving(tmp_path / "data") as collector, cable_to(collector.url) as cable:
        pushed = evenfleet("release", "push", release, url=cable.url)
        assert (pushed.returncode, pushed.stderr) == (0, "")
        assert cable.sent_bytes < 16 * MIB  # what was under way in sockets at the kill is sent again
        digest = pushed.stdout.strip()

        assert evenfleet("release", "tag", digest[:8], "prod", url=collector.url).returncode == 0
        shown: dict[str, Any] = json.loads(evenfleet("release", "show", "prod", "--json", url=collector.url).stdout)
        assert shown["release"] == digest
        _served_as_signed(collector, release, shown)


def _served_as_signed(collector: Serving, release: Path, shown: dict[str, Any]) -> None:
    """What a device would fetch is what was signed, signature and all."""
    (signature,) = shown["signatures"]
    (file,) = (release / "signatures").iterdir()
    assert json.loads(file.read_bytes()) == signature
    assert collector.get(f"/api/v1/artifacts/{shown['release']}") == json.loads(
        (release / "manifest.json").read_bytes()
    )
    assert collector.get("/api/v1/tags/prod/moves")["items"][0]["release"] == shown["release"]
