"""What a clone and a wheel of it are: complete, without strangers, and usable as they say."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from evenfleet_agent import cli as agent_cli
from evenfleet_agent import config as agent_config
from evenfleet_collector import cli as collector_cli
from evenfleet_collector import config as collector_config
from evenfleet_shared.errors import ConfigError

ROOT = Path(__file__).parents[1]
PACKAGES = {"evenfleet_agent", "evenfleet_collector", "evenfleet_shared"}
PYTHON_FOLDERS = ("agent", "bench", "collector", "deploy", "docs", "examples", "shared", "tests")

# What came with Python 3.11 or later; the project runs on 3.10.
LATER_MODULES = {"tomllib", "wsgiref.types", "annotationlib", "compression"}
LATER_NAMES = {
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout", "timeout_at"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "ReprEnum", "StrEnum", "verify"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "typing": {"LiteralString", "Never", "NotRequired", "Required", "Self", "Unpack", "assert_never", "override"},
}


def tracked() -> list[Path]:
    """Return the files that are, or are about to be, in the repository."""
    if not (ROOT / ".git").exists():
        return [path for path in ROOT.rglob("*") if path.is_file() and not _is_made(path.relative_to(ROOT))]
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def _is_made(path: Path) -> bool:
    return path.parts[0].startswith(".") or "__pycache__" in path.parts


def python_files() -> list[Path]:
    return [path for folder in PYTHON_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def commands(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below, groups included, with the words that call it."""
    yield names, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, f"{' '.join(names)} lists {name}, which there is not"
            yield from commands(below, *names, name)


COMMANDS = [
    *commands(collector_cli.evenfleet, "evenfleet"),
    *commands(agent_cli.main, "evenfleet-agent"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT)),
        ],
        check=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_wheel_holds_the_three_packages_and_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_wheel_holds_every_file_of_the_packages(wheel):
    """Templates, style sheets and py.typed are files that an import would not miss."""
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT / folder).as_posix()
        for folder in ("agent", "collector", "shared")
        for path in tracked()
        if path.is_relative_to(ROOT / folder)
    }
    assert held == wanted
    assert {"evenfleet_collector/web/templates/page.html", "evenfleet_collector/web/static/page.css"} <= held
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


def test_wheel_brings_both_commands_and_the_licence(wheel):
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entry_points).decode()
    assert "evenfleet = evenfleet_collector.cli:main" in text
    assert "evenfleet-agent = evenfleet_agent.cli:main" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_no_file_names_a_package_registry():
    """Where packages come from is the business of who installs them."""
    # Put together here, or this file would name them.
    hosts = [name.encode() for name in ("pypi" + ".org", "python" + "hosted.org", "npmjs" + ".org", "index" + "-url")]
    found = [str(path.relative_to(ROOT)) for path in tracked() if any(host in path.read_bytes() for host in hosts)]
    assert found == []


def test_no_module_is_a_drawer_for_odds_and_ends():
    names = {"utils", "util", "common", "helpers", "misc"}
    assert [path for path in python_files() if path.stem in names or path.parent.name in names] == []


def test_every_module_keeps_to_python_3_10():
    found = {path.relative_to(ROOT).as_posix(): _later_than_3_10(path) for path in python_files()}
    assert {path: names for path, names in found.items() if names} == {}


def _later_than_3_10(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
    # Behind an `if`, such as one on the version, anything may stand.
    guarded = {id(node) for check in ast.walk(tree) if isinstance(check, ast.If) for node in ast.walk(check)}
    later: list[str] = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            later += [alias.name for alias in node.names if alias.name in LATER_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            later += sorted(LATER_NAMES.get(node.module, set()) & names) + [node.module] * (
                node.module in LATER_MODULES
            )
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            later += [f"{node.value.id}.{node.attr}"] * (node.attr in LATER_NAMES.get(node.value.id, ()))
    return later


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_command_has_help_with_an_example_and_exit_codes(words, command):
    context = click.Context(command, info_name=" ".join(words))
    text = command.get_help(context)
    assert (command.help or "").strip(), "no help"
    assert "exit code" in text.lower()
    if len(words) > 1:
        assert "Example" in text
        assert f"{words[0]} " in text.partition("Example")[2]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{parameter.name} is not explained"


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_command_that_prints_data_can_print_json(words, command):
    if isinstance(command, click.Group) or words[-1] in {"demo", "run"}:
        return
    assert any("--json" in parameter.opts for parameter in command.params)


def test_example_configuration_of_the_collector_is_its_defaults(tmp_path):
    file = tmp_path / "collector.toml"
    file.write_text(collector_config.example(), encoding="utf-8")
    assert collector_config.load(file, {}, {}) == collector_config.ServeSettings()


def test_example_configuration_of_an_agent_lacks_nothing_but_the_device(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(agent_config.example(), encoding="utf-8")
    with pytest.raises(ConfigError, match="device is ''"):
        agent_config.load(file, {}, {})
    found = agent_config.load(file, {}, {"device": "press-07"})
    assert found == agent_config.AgentSettings(device="press-07")
