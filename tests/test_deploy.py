"""What a board is given: the packages, the bundle's script, the service's unit."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evenfleet_agent import cli, config, intake
from evenfleet_agent.config import AgentSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "evenfleet-agent.service"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Nothing may come with the agent that is not in here: a board has little room, and each one is a wheel to be had.
EXPECTED = set(runpy.run_path(str(ROOT / "bench" / "install.py"))["EXPECTED"]) - {"evenfleet"}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(DEPLOY))
    return importlib.import_module


def needed(requirements: list[str]) -> set[str]:
    """Return all that some requirements come to, as the metadata of what is installed here says."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(line) for line in metadata.requires(name) or ()]
    return found


def settings_of_unit() -> dict[str, list[str]]:
    lines = [line for line in UNIT.read_text(encoding="utf-8").splitlines() if re.match(r"\w+=", line)]
    found: dict[str, list[str]] = {}
    for name, _, value in (line.partition("=") for line in lines):
        found.setdefault(name, []).append(value)
    return found


def test_an_agent_with_litert_brings_nothing_unexpected():
    extras = PROJECT["optional-dependencies"]
    came = needed([*PROJECT["dependencies"], *extras["agent"], *extras["litert"]])
    assert came - EXPECTED == set()
    assert {"numpy", "paho-mqtt", "ai-edge-litert"} <= came


def test_what_an_armv7_board_cannot_get_as_a_wheel_comes_from_debian_or_is_built(program):
    bundle = program("bundle")
    wanted = {bundle.name_of(line) for line in bundle.requirements(PROJECT, bundle.EXTRAS["armhf"])}
    # These were looked for on the index: pure ones, and the one runtime with a wheel for armv7.
    assert wanted - set(bundle.FROM_DEBIAN) - set(bundle.BUILT) - {"tomli"} == {"click", "paho-mqtt", "tflite-runtime"}
    # They are fetched without what they depend on, so they may depend on nothing that is not fetched too.
    assert needed(["click", "paho-mqtt", "msgspec", "pynacl"]) - wanted - {"cffi", "pycparser"} == set()


def test_every_package_of_a_bundle_is_pinned(program):
    bundle = program("bundle")
    for extras, files in (
        (bundle.EXTRAS["arm64"], ["constraints.txt"]),
        (bundle.EXTRAS["armhf"], ["constraints.txt", "constraints-tflite.txt"]),
    ):
        pinned = bundle.pins((ROOT / file).read_text(encoding="utf-8") for file in files)
        names = {bundle.name_of(line) for line in bundle.requirements(PROJECT, extras)}
        assert names - {"tomli"} - set(pinned) == set()
    assert set(bundle.BUILT_WITH) <= set(pinned)


def test_a_later_pin_stands_for_an_earlier_one(program):
    assert program("bundle").pins(["numpy==2.4.6\n# why\n", "NumPy==1.26.4"]) == {"numpy": "NumPy==1.26.4"}


@pytest.mark.parametrize("name", ["bundle", "emulated_board"])
def test_a_directory_that_is_there_is_not_filled(program, tmp_path, name):
    machine = program("debian").MACHINES["armhf"]
    make = program(name).bundle if name == "bundle" else program(name).make
    with pytest.raises(SystemExit, match="is there already"):
        make(tmp_path, machine, (), None) if name == "bundle" else make(tmp_path, machine, Path("/none"), ())


def test_running_on_no_board_is_one_line(program, tmp_path):
    with pytest.raises(SystemExit, match="is no emulated board"):
        program("emulated_board").command(tmp_path, [], ["true"])


# --- the bundle's script, with a stand-in for the project's wheel ---------------------------------------------------


def write_bundle(folder: Path, *, doctor: int = 0, **about: str) -> Path:
    """Write a bundle for this machine whose `evenfleet-agent` says which wheel it came with and ends with a code."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    facts = {
        "version": "1.0",
        "extras": "agent",
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "bits": "64" if sys.maxsize > 2**32 else "32",
        "machine": "this one",
        "kernels": os.uname().machine,
        "system_packages": "",
        "system_modules": "",
    }
    (folder / "about").write_text("".join(f"{name}='{value}'\n" for name, value in (facts | about).items()))
    shutil.copy(DEPLOY / "install.sh", folder)
    info = "evenfleet-1.0.dist-info"
    with zipfile.ZipFile(wheels / "evenfleet-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("stand_in.py", f"def main():\n    print('doctor of {folder.name}')\n    return {doctor}\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: evenfleet\nVersion: 1.0\nProvides-Extra: agent\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\nevenfleet-agent = stand_in:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    listed = subprocess.run(
        "find . -type f ! -name SHA256SUMS | xargs sha256sum > SHA256SUMS", shell=True, cwd=folder, check=True
    )
    assert listed.returncode == 0
    return folder


def install(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(folder / "install.sh"), str(target)],
        env={**os.environ, "PYTHON": sys.executable},
        check=False,
        capture_output=True,
        text=True,
    )


def says(target: Path) -> str:
    return subprocess.run(
        [target / "current/bin/evenfleet-agent"], check=False, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.processes
def test_an_installation_that_does_not_work_leaves_the_one_before_in_place(tmp_path):
    """Three installations in turn: one that works, one whose doctor finds no runtime, one that works again."""
    target = tmp_path / "target"

    first = install(write_bundle(tmp_path / "first"), target)
    assert (first.returncode, says(target)) == (0, "doctor of first"), first.stderr

    second = install(write_bundle(tmp_path / "second", doctor=1), target)
    assert second.returncode == 1
    assert "no runtime works" in second.stderr
    assert says(target) == "doctor of first"

    third = install(write_bundle(tmp_path / "third"), target)
    assert (third.returncode, says(target)) == (0, "doctor of third"), third.stderr
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "current"]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"python_version": "3.9"}, "this bundle is for 3.9 of"),
        ({"bits": "16"}, "of 16"),
        ({"kernels": "vax"}, f"this machine is a {os.uname().machine}, this bundle is for this one"),
        ({"system_modules": "no_such_module", "system_packages": "python3-none"}, "apt-get install python3-none"),
    ],
)
def test_a_bundle_for_another_board_is_refused_before_anything_is_written(tmp_path, about, said):
    done = install(write_bundle(tmp_path / "bundle", **about), tmp_path / "target")
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "target").exists()


def test_a_damaged_wheel_is_refused_before_anything_is_written(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    with next(folder.glob("wheels/*.whl")).open("ab") as wheel:
        wheel.write(b"\0")
    done = install(folder, tmp_path / "target")
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "target").exists()


# --- the unit -------------------------------------------------------------------------------------------------------


def test_unit_calls_the_program_that_the_bundle_installs_as_the_program_allows():
    (line,) = settings_of_unit()["ExecStart"]
    program, name, *arguments = shlex.split(line)
    assert (
        f"target=${{1:-{program.removesuffix('/current/bin/evenfleet-agent')}}}" in (DEPLOY / "install.sh").read_text()
    )
    command = cli.main.commands[name]
    parsed = command.make_context(name, arguments, parent=click.Context(cli.main))
    assert parsed.params["file"] == Path("/etc/evenfleet/agent.toml")


def test_unit_gives_the_agent_the_copy_of_its_token(tmp_path):
    unit = settings_of_unit()
    ((name, source),) = (line.split(":") for line in unit["LoadCredential"])
    environment = dict(line.partition("=")[::2] for line in unit["Environment"])
    told = {variable: value.replace("%d", str(tmp_path)) for variable, value in environment.items()}
    (tmp_path / name).write_text("secret\n")
    file = tmp_path / "agent.toml"
    file.write_text('device = "press-07"\n')

    assert Path(source).parent == Path("/etc/evenfleet")
    assert config.load(file, told, {}).password() == "secret"


def test_unit_lets_the_agent_write_its_state_and_stop_in_order():
    unit = settings_of_unit()
    state_dir = AgentSettings(device="press-07").state_dir
    assert [f"/var/lib/{name}" for name in unit["StateDirectory"]] == unit["ReadWritePaths"] == [state_dir]
    # The agent ends within 5 seconds of SIGTERM, which must reach it before its runners are killed.
    assert (unit["KillMode"], int(unit["TimeoutStopSec"][0]) > 5) == (["mixed"], True)
    # The supervisor outlives a runner that the kernel killed.
    assert unit["OOMPolicy"] == ["continue"]
    users = (DEPLOY / "evenfleet.sysusers.conf").read_text()
    assert re.search(rf'^u {unit["User"][0]} - ".*" {state_dir} -$', users, re.MULTILINE)


def test_applications_of_one_group_get_to_the_folder_that_they_leave_their_figures_in():
    unit = settings_of_unit()
    folder = Path(AgentSettings(device="press-07").probe.directory)
    assert [Path("/run", name) for name in unit["RuntimeDirectory"]] == [folder.parent]
    assert int(unit["RuntimeDirectoryMode"][0], 8) & 0o001  # entered by whoever is not of the agent's own group
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]
    # Without it the agent could neither give the folder to the group nor read what a member leaves there.
    lines = (DEPLOY / "evenfleet.sysusers.conf").read_text().splitlines()
    assert {f"g {intake.GROUP} -", f"m {unit['User'][0]} {intake.GROUP}"} <= set(lines)
    assert "@system-service" in unit["SystemCallFilter"]
    assert "RestrictSUIDSGID" not in unit
    assert f"usermod -aG {intake.GROUP} " in (ROOT / "docs" / "probe.md").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian's systemd)")
def test_unit_names_options_that_exist_and_shields_the_system(tmp_path):
    """Exposure is systemd's own figure, times ten: 26 here, 96 of a unit with none of these lines."""
    file = tmp_path / UNIT.name
    file.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text(), flags=re.MULTILINE))
    verified = subprocess.run(["systemd-analyze", "verify", str(file)], check=False, capture_output=True, text=True)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(file)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert exposed.returncode == 0, exposed.stdout[-200:]
