"""One agent per state directory, and what is seen of it from outside."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evenfleet_agent import service
from evenfleet_agent import standing as standings
from evenfleet_agent.config import AgentSettings, BrokerSettings, RuntimeSettings
from evenfleet_agent.names import boot_word
from evenfleet_agent.outbox import open_outbox
from evenfleet_agent.service import Status
from evenfleet_agent.standing import StandingFile
from evenfleet_shared.errors import ConfigError, StoreError
from evenfleet_shared.messages import Event, Incarnation


def settings(state_dir: Path | str) -> AgentSettings:
    return AgentSettings(device="press-01", state_dir=str(state_dir))


def fill(directory: Path, count: int, max_bytes: int = 1 << 20) -> None:
    outbox = open_outbox(directory, boot="b", new_random=lambda: "aaaaaaaa", max_bytes=max_bytes, jitter=lambda: 1.0)

    def make(incarnation: Incarnation, seq: int, floor: int) -> Event:
        return Event(
            device="press-01",
            incarnation=incarnation,
            seq=seq,
            floor=floor,
            event="runner-failed",
            happened_uptime_s=1.0,
            happened_wall_s=1.0,
        )

    for _ in range(count):
        outbox.append("event", make)
    outbox.close()


def test_a_directory_that_no_agent_ran_in_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no agent has run yet with state_dir .*nothing$"):
        service.status(settings(tmp_path / "nothing"))

    assert not (tmp_path / "nothing").exists()


def test_an_outbox_that_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"cannot read .*outbox\.sqlite: file is not a database"):
        service.status(settings(tmp_path))


def test_the_status_of_an_agent_that_has_ended_is_what_it_left(tmp_path: Path) -> None:
    fill(tmp_path, 3, max_bytes=10)

    found = service.status(settings(tmp_path))

    assert isinstance(found, Status)
    assert (found.running, found.incarnation, found.last_seq) == (False, Incarnation(1, "aaaaaaaa"), 3)
    assert (found.waiting_messages, found.release) == (1, None)
    assert [(loss.first_seq, loss.last_seq, loss.reason) for loss in found.losses] == [(1, 2, "outbox-full")]


def test_the_status_of_an_agent_that_runs_says_how_its_session_stands(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    file = StandingFile(tmp_path / standings.FILE_NAME, boot_word())
    lock = os.open(tmp_path / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found = service.status(settings(tmp_path))
    assert (found.connected, found.connected_s, found.reason, found.receipt_s) == (False, None, "not known", None)

    now_s = time.monotonic()
    file.receipted(now_s - 120.0)
    file.connected(now_s - 3600.0)
    found = service.status(settings(tmp_path))
    assert (found.connected, found.reason) == (True, None)
    assert found.connected_s == pytest.approx(3600.0, abs=10.0)
    assert found.receipt_s == pytest.approx(120.0, abs=10.0)

    file.disconnected("no broker answers", now_s)
    assert service.status(settings(tmp_path)).reason == "no broker answers"

    # It was killed, and could not say that the session is gone.
    file.connected(now_s)
    os.close(lock)
    found = service.status(settings(tmp_path))
    assert (found.running, found.connected, found.reason) == (False, False, "the agent does not run")
    assert found.receipt_s is not None


def test_what_is_left_of_another_boot_says_nothing_of_this_one(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    file = StandingFile(tmp_path / standings.FILE_NAME, "another boot")
    file.receipted(1e9)
    file.connected(1e9)

    found = service.status(settings(tmp_path))
    assert (found.connected, found.receipt_s) == (False, None)


def test_the_command_says_all_of_it_to_a_person_and_to_a_program(tmp_path: Path) -> None:
    fill(tmp_path, 3, max_bytes=10)
    file = tmp_path / "agent.toml"
    file.write_text(f'device = "press-01"\nstate_dir = "{tmp_path}"')
    standing = StandingFile(tmp_path / standings.FILE_NAME, boot_word())
    standing.disconnected("no broker answers at broker:1883", time.monotonic() - 400.0)
    standing.receipted(time.monotonic() - 400.0)
    standing.troubled("another client")
    standing.runs({"int8": "ready", "float32": "refused: no such operator"})
    standing.took(0.0213, 0.1, time.monotonic())
    lock = os.open(tmp_path / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    said = run("status", "--config", str(file))
    as_json = json.loads(run("status", "--json", "--config", str(file)).stdout)
    os.close(lock)

    assert (said.returncode, said.stderr) == (0, "")
    for line in (
        "agent        running",
        "broker       no session for 6 minutes: no broker answers at broker:1883",
        "trouble      another client",
        "  float32              refused: no such operator",
        "  int8                 ready",
        "takes        2.1% of a processor, may take 10.0%",
        "receipt      at most 6 minutes ago",
        "given up     2 messages: outbox-full",
    ):
        assert line in said.stdout.splitlines()
    assert (as_json["connected"], as_json["given_up"]) == (False, {"outbox-full": 2})
    assert as_json["receipt_s"] > 399.0


def test_asking_changes_nothing_for_the_agent_that_runs(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    lock = os.open(tmp_path / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    assert service.status(settings(tmp_path)).running
    os.close(lock)
    assert not service.status(settings(tmp_path)).running


def test_a_second_agent_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    with pytest.raises(StoreError, match="another agent runs with state_dir"):
        service.serve(settings(tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["agent.lock"]
    os.close(lock)


def test_a_directory_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(StoreError, match=r"cannot use state_dir /proc/evenfleet: .*needs to write there"):
        service.serve(settings("/proc/evenfleet"))


def test_a_look_ahead_finds_what_is_missing(tmp_path: Path) -> None:
    program = tmp_path / "python"
    missing = AgentSettings(device="a", runtime=RuntimeSettings(python=str(program)))
    with pytest.raises(ConfigError, match=r"runtime\.python is .*, which is not a program"):
        service.check(missing)

    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    service.check(missing)

    with pytest.raises(ConfigError, match=r"cannot read broker\.password_file .*none: No such file"):
        service.check(AgentSettings(device="a", broker=BrokerSettings(password_file=str(tmp_path / "none"))))


def test_a_look_ahead_tries_the_state_directory_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    service.check_state_dir(settings(tmp_path / "not" / "there"))
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(ConfigError, match=r"cannot use state_dir /proc/evenfleet: .*needs to write there"):
        service.check_state_dir(settings("/proc/evenfleet"))


def test_a_check_of_nothing_asks_for_the_configuration() -> None:
    done = run("check")

    assert done.returncode == 2
    assert "Missing option '--config'" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('device = "a"\nstate_dir = "/proc/evenfleet"', "cannot use state_dir /proc/evenfleet"),
        (
            'device = "a"\n[runtime]\nname = "torch"',
            "runtime.name is 'torch', must be one of litert, tflite, litert-compiled, tensorflow, onnx",
        ),
        ('device_class = "a"', "device is not set, and has no default"),
    ],
)
def test_what_a_check_finds_is_one_line_and_exit_code_2(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)

    done = run("check", "--config", str(file))

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert expected in line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evenfleet_agent", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ('devise = "a"', 2, "unknown setting devise; did you mean device?"),
        ('device = "A B"', 2, "device is 'A B'"),
        ("device", 2, "is not TOML"),
        ('device = "a"\n[broker]\npassword_file = "/nowhere"', 2, "/nowhere"),
        ('device = "a"\nstate_dir = "/proc/evenfleet"', 1, "/proc/evenfleet"),
    ],
)
def test_what_keeps_an_agent_from_starting_is_one_line_and_an_exit_code(
    tmp_path: Path, text: str, code: int, expected: str
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)

    done = run("run", "--config", str(file))

    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert done.stdout == ""


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("run", "--config", str(tmp_path / "none.toml"))

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "none.toml" in line


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_key_that_cannot_be_trusted_is_told_before_anything_runs(tmp_path: Path, command: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        f'device = "a"\nstate_dir = "{tmp_path}/state"\n[release]\ntrusted_keys = ["{tmp_path}/none.pub"]\n'
    )

    said = run(command, "--config", str(file))

    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"error: release.trusted_keys: {tmp_path}/none.pub")
    assert not (tmp_path / "state").exists()
