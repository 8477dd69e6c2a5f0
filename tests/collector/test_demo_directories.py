"""What a killed demo has left goes; what is another one's stays."""

from __future__ import annotations

from pathlib import Path

from evenfleet_collector import demo
from evenfleet_shared.disk import held


def make(temporary: Path, name: str, *files: str) -> Path:
    directory = temporary / f"evenfleet-demo-{name}"
    directory.mkdir()
    for file in files:
        (directory / file).write_text("x")
    return directory


def test_only_a_directory_whose_demo_is_gone_is_removed(tmp_path: Path) -> None:
    killed = make(tmp_path, "killed", "demo.lock", "agent.log")
    lives = make(tmp_path, "lives", "demo.lock", "agent.log")
    unknown = make(tmp_path, "unknown", "agent.log")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "demo.lock").touch()
    (tmp_path / "evenfleet-demo-link").symlink_to(elsewhere)

    with held(lives / "demo.lock"):
        assert demo.remove_abandoned(tmp_path) == [killed]

    assert not killed.exists()
    assert (lives / "agent.log").exists()
    assert (unknown / "agent.log").exists()
    assert (elsewhere / "demo.lock").exists()
