"""What the pages say is so: commands exist with their options, links lead somewhere, generated pages are up to date."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from evenfleet_agent import cli as agent_cli
from evenfleet_agent import config as agent_config
from evenfleet_collector import cli as collector_cli
from evenfleet_collector.demo import ACTORS, DEFAULT_FAULTS
from evenfleet_collector.optimize.datasets import DATA_FORMATS
from evenfleet_collector.optimize.datasets.declared import ImageSettings
from evenfleet_collector.optimize.models import MODEL_FORMATS
from evenfleet_collector.optimize.models.onnx_file import INSTALL
from evenfleet_collector.optimize.target import METRICS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
PROGRAMS = {"evenfleet": collector_cli.evenfleet, "evenfleet-agent": agent_cli.main}

# Words that stand for something of the reader's own.
PLACEHOLDERS = {"ID": "1", "DIR": ".", "..": "."}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the code blocks of a page: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def commands_in(text: str) -> list[tuple[str, bool]]:
    """Return every call of our programs in a page, and whether it is whole: within a line a command is only named."""
    lines = [
        (line.strip(), True)
        for language, block in blocks(text)
        if language in {"", "sh"}
        for line in block.splitlines()
    ]
    lines += [(code.replace("\n", " "), False) for code in re.findall(r"`([^`]+)`", prose(text))]
    parts = [(part.strip(), whole) for line, whole in lines for part in re.split(r"&&|\|\||[|;&>]|\s#\s", line)]
    return [(part, whole) for part, whole in parts if re.match(r"evenfleet(-agent)?\s+\S", part)]


CALLS = [(name_of(page), *call) for page in PAGES for call in commands_in(page.read_text(encoding="utf-8"))]


def parse(call: str, *, whole: bool) -> None:
    program, *arguments = shlex.split(call)
    command: click.Command = PROGRAMS[program]
    arguments = [PLACEHOLDERS.get(argument, argument) for argument in arguments]
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        below = command.get_command(context, name)
        assert below is not None, f"there is no command {name}"
        command, context = below, click.Context(below, info_name=name, parent=context)
    words = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    words |= set(context.help_option_names)
    unknown = [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in words]
    assert not unknown, f"{command.name} has no {', '.join(unknown)}"
    if whole and not {"-h", "--help", "--version"} & set(arguments):
        command.make_context(command.name, arguments, parent=context.parent)


def test_the_pages_have_commands_to_look_at():
    assert len([page for page, _, _ in CALLS if page == "README.md"]) >= 15


@pytest.mark.parametrize(("page", "call", "whole"), CALLS)
def test_command_in_a_page_is_one_with_these_options(page, call, whole):
    parse(call, whole=whole)


@pytest.mark.parametrize(
    "call", ["evenfleet serve --dta x", "evenfleet sreve", "evenfleet release push", "evenfleet parity a b"]
)
def test_wrong_command_would_be_found(call):
    with pytest.raises((AssertionError, click.UsageError)):
        parse(call, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_in_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    near = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in near if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_a_page_exist(page):
    text = prose(page.read_text(encoding="utf-8"))
    named = set(re.findall(r"`((?:agent|bench|collector|docs|examples|shared|tests)/[\w./-]+)`", text))
    assert [file for file in sorted(named) if not (ROOT / file).exists()] == []


def test_page_on_reports_names_every_metric_of_a_target():
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page.partition("## Targets")[2]))
    assert set(METRICS) <= named


@pytest.mark.parametrize("page", ["protocol", "lifecycles"])
def test_generated_page_says_what_the_code_says(page):
    """`make docs` writes it anew."""
    render = runpy.run_path(str(ROOT / "docs" / f"{page}.py"))["render"]
    assert (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") == render()


def test_decisions_are_numbered_and_say_what_drove_them_and_their_price():
    decisions = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [path.name[:4] for path in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        for heading in ("**Drivers.**", "**Options", "**Choice.**", "**Price.**"):
            assert heading in text, path.name


def test_agent_configuration_of_the_readme_is_accepted(tmp_path):
    (block,) = [
        block for language, block in blocks((ROOT / "README.md").read_text(encoding="utf-8")) if language == "toml"
    ]
    file = tmp_path / "agent.toml"
    file.write_text(block, encoding="utf-8")
    assert agent_config.load(file, {}, {}).device == "press-07"


def test_readme_read_from_the_top_works_for_any_user_and_judges_under_one_policy():
    """A policy that is set later starts all evidence anew, and /var/lib is not everybody's."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("evenfleet policy set") < text.index("evenfleet-agent run")
    state_dir = re.search(r'^state_dir = "(.*)"$', text, re.MULTILINE)
    assert state_dir
    assert not Path(state_dir[1]).is_absolute()


def test_agents_that_the_readme_speaks_of_are_those_of_the_demo():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:xnnpack|plain|tflite|tensorflow)-[1-9]\b(?!\.)", text))
    assert named <= {actor.device for actor in ACTORS}
    assert set(DEFAULT_FAULTS) <= named


def test_make_without_a_target_prints_a_line_for_each():
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for target in ("setup", "demo", "test", "test-fast", "lint", "check-slow", "bench"):
        assert re.search(rf"^  make {target} +\S", printed, re.MULTILINE), target


def test_flag_checker_of_the_verdicts_page_runs_on_python_alone():
    (program,) = [
        block
        for language, block in blocks((ROOT / "docs/verdicts.md").read_text(encoding="utf-8"))
        if language == "python"
    ]
    evidence = (
        '{"why": {"rule": "fixed-set-exact", "errors": 135, "reference_errors": 3, "unstable": 0,'
        ' "margin_ratio": 0.01, "n": 150}}'
    )
    checked = subprocess.run(
        [sys.executable, "-S", "-c", program], input=evidence, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "132 errors more than the reference, 1.5 allowed\n")


def test_command_that_installs_the_onnx_converter_is_what_make_setup_installs():
    words = INSTALL.removeprefix("pip install --no-deps ").split()
    assert set(words) <= set((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert {word.partition("==")[0] for word in words} <= set((ROOT / "Makefile").read_text(encoding="utf-8").split())
    assert INSTALL in (ROOT / "docs/models.md").read_text(encoding="utf-8")


def test_page_of_models_and_data_has_every_form_and_every_setting():
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    settings = [field.name for field in dataclasses.fields(ImageSettings)]
    assert [name for name in settings if f"`{name}`" not in text] == []
    rows = re.findall(r"^\| .*(?:`|directory|images)", text, re.MULTILINE)
    assert len(rows) >= len(MODEL_FORMATS) + len(DATA_FORMATS)
