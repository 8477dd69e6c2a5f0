"""What every command that asks a collector shares: where it is, and what a release may be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from evenfleet_collector.config import DEFAULT_URL
from evenfleet_collector.resources import RELEASE_RULE, is_release_name
from evenfleet_shared.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

url_option = click.option(
    "--url",
    metavar="URL",
    default=DEFAULT_URL,
    envvar="EVENFLEET_URL",
    show_default=True,
    show_envvar=True,
    help="Where the collector's API is.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API gives it.")


def check_release(text: str) -> None:
    """Refuse what cannot stand for a release before anybody is asked.

    Raises:
        ConfigError: It is no tag, no digest, nor enough of its start.
    """
    if not is_release_name(text):
        raise ConfigError(f"RELEASE: expected {RELEASE_RULE}, found {text!r}")
