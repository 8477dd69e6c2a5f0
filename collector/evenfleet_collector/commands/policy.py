"""`evenfleet policy`: show and set what is tolerated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.box import SIMPLE
from rich.table import Table

from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import json_option, url_option
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import settings
from evenfleet_shared.errors import ConfigError

_CODES: Final = """\b
Exit codes: 0 done; 1 failed, or the collector does not answer; 2 bad arguments; 3 refused by the collector.
"""


@click.group(
    epilog="\b\nExample:\n  evenfleet policy set latency.margin_ratio=0.2\n\n" + _CODES, context_settings=CONTEXT
)
def policy() -> None:
    """Show and set what is tolerated."""


@policy.command("show", epilog="\b\nExample:\n  evenfleet policy show --json\n\n" + _CODES)
@url_option
@json_option
def show_policy(*, url: str, as_json: bool) -> None:
    """Show the policy in force."""
    with Collector(url) as collector:
        found = collector.policy()
    if as_json:
        print_json(found)
    else:
        show(_table(found))


@policy.command(
    "set", epilog="\b\nExample:\n  evenfleet policy set window_length_s=60 memory.quantile=0.9\n\n" + _CODES
)
@click.argument("words", metavar="SETTING=VALUE...", nargs=-1)
@click.option("--file", type=click.Path(path_type=Path), help="A TOML file of settings, as 'policy show' names them.")
@url_option
@json_option
def set_policy(*, words: tuple[str, ...], file: Path | None, url: str, as_json: bool) -> None:
    """Change settings of the policy in force; the others stay.

    The changed policy is a new revision: all evidence starts anew, baselines stay. On failure nothing changes.
    """
    if not words and file is None:
        raise click.UsageError("nothing to set: give SETTING=VALUE, or --file")
    with Collector(url) as collector:
        found = collector.set_policy(_changed(collector.policy(), file, words))
    if as_json:
        print_json(found)
    else:
        show(_table(found))


def _changed(before: Policy, file: Path | None, words: tuple[str, ...]) -> Policy:
    overrides: dict[str, Any] = dict(_flat(msgspec.to_builtins(before)))
    if file is not None:
        from_file = settings.load(Policy, file, {}, {})
        default = dict(_flat(msgspec.to_builtins(Policy())))
        overrides |= {name: value for name, value in _flat(msgspec.to_builtins(from_file)) if value != default[name]}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"policy set: expected SETTING=VALUE, found {word!r}; nothing was changed")
        if name == "revision":
            raise ConfigError("policy set: revision is counted by the collector and cannot be set; nothing was changed")
        overrides[name] = value
    return settings.load(Policy, None, {}, overrides, typed="policy set, nothing was changed")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def _table(found: Policy) -> Table:
    table = Table("setting", "value", box=SIMPLE)
    for name, value in _flat(msgspec.to_builtins(found)):
        table.add_row(name, f"{value:g}" if isinstance(value, float) else str(value))
    return table
