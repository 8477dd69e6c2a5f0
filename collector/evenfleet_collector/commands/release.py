"""`evenfleet release`: push, list, show and assign releases; `signing` has what asks no collector."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import CONTEXT, check_release, json_option, print_json, show, url_option
from evenfleet_collector.commands.signing import Directory, checked_release, keygen, sign, verify
from evenfleet_collector.resources import EVERY_DEVICE
from evenfleet_collector.web import figures
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import ConfigError, ReleaseError
from evenfleet_shared.manifest import FileRef, Manifest
from evenfleet_shared.topics import DEVICE_ID_RULE, is_device_id

_EXAMPLE = "\b\nExample:\n  evenfleet release push release/\n  evenfleet release assign 9f2c11 --all\n\n"

_CODES = """\b
Exit codes: 0 done; 1 failed, a damaged file, or the collector does not answer; 2 bad arguments;
3 refused by the collector.
"""


@click.group(epilog=_EXAMPLE + _CODES, context_settings=CONTEXT)
def release() -> None:
    """Sign, verify, push, list, show and assign releases."""


for command in (keygen, sign, verify):
    release.add_command(command)


@release.command("push", epilog="\b\nExample:\n  evenfleet release push release/\n\n" + _CODES)
@click.argument("directory", type=Directory, metavar="DIR")
@url_option
@json_option
def push(*, directory: Path, url: str, as_json: bool) -> None:
    """Check the release in DIR, upload what the collector does not have, and print the release's digest.

    The manifest goes last: on failure the release is not there, and what was uploaded is not uploaded again.
    """
    checked = checked_release(directory)
    manifest, digest = checked.manifest, checked.digest
    payload = _manifest_bytes(directory, digest)
    with Collector(url) as collector:
        wanted = {reference.sha256: reference for reference in manifest.files}
        missing = [reference for reference in wanted.values() if not collector.has_artifact(reference.sha256)]
        with _progress(missing) as sent:
            for reference in missing:
                collector.put_artifact(directory / reference.file, reference, sent)
        row = collector.add_release(payload)
    if as_json:
        print_json({"release": row.release, "model": row.model, "uploaded": [item.file for item in missing]})
    else:
        click.echo(row.release)


@release.command("list", epilog="\b\nExample:\n  evenfleet release list --json\n\n" + _CODES)
@url_option
@json_option
def list_releases(*, url: str, as_json: bool) -> None:
    """List releases, the newest first."""
    with Collector(url) as collector:
        rows = collector.releases()
    if as_json:
        print_json(rows)
        return
    if not rows:
        show("No release has been pushed yet.")
        return
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    for column in ("release", "model", "variants", "pushed"):
        table.add_column(column, overflow="fold")
    for row in rows:
        variants = ", ".join(variant.name for variant in row.manifest.variants)
        table.add_row(figures.short(row.release), row.model, variants, figures.instant(row.pushed_s))
    show(table)


@release.command("show", epilog="\b\nExample:\n  evenfleet release show 9f2c11\n\n" + _CODES)
@click.argument("digest", metavar="RELEASE")
@url_option
@json_option
def show_release(*, digest: str, url: str, as_json: bool) -> None:
    """Show a release's variants. RELEASE is a digest or at least 4 digits of its start."""
    check_release(digest)
    with Collector(url) as collector:
        row = collector.release(digest)
    if as_json:
        print_json(row)
    else:
        show(Text(f"{row.model} {row.release}", style="bold"), render_manifest(row.manifest))


@release.command("assign", epilog="\b\nExample:\n  evenfleet release assign 9f2c11 --device press-07\n\n" + _CODES)
@click.argument("digest", metavar="RELEASE")
@click.option("--device", "devices", multiple=True, metavar="ID", help="A device; may be repeated.")
@click.option("--all", "every", is_flag=True, help="Every device that is not assigned a release by its name.")
@url_option
@json_option
def assign(*, digest: str, devices: tuple[str, ...], every: bool, url: str, as_json: bool) -> None:
    """Let devices run a release. RELEASE is a digest or at least 4 digits of its start.

    Devices are assigned one by one: where one is refused, those before it keep the assignment.
    """
    if every == bool(devices):
        raise ConfigError(
            "release assign: expected either --device ID or --all, found " + ("both" if every else "none")
        )
    check_release(digest)
    for device in devices:
        if not is_device_id(device):
            raise ConfigError(f"--device: expected {DEVICE_ID_RULE}, found {device!r}; nothing was assigned")
    with Collector(url) as collector:
        done = [collector.assign(device, digest) for device in devices or (EVERY_DEVICE,)]
    if as_json:
        print_json(done)
        return
    for assignment in done:
        whom = "every device not named" if assignment.device == EVERY_DEVICE else assignment.device
        click.echo(f"{figures.short(assignment.release or '')} is assigned to {whom}")


def render_manifest(manifest: Manifest) -> Table:
    """Return a release's variants as a table: file, size, and what each scored where the release was built."""
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    for column in ("variant", "format", "size", "accuracy", "agreement"):
        table.add_column(column, justify="right" if column in {"size", "accuracy"} else "left", overflow="fold")
    for variant in manifest.variants:
        reference = variant.reference
        table.add_row(
            Text(variant.name, style="bold" if variant.name == manifest.reference_variant else ""),
            variant.format,
            figures.size(variant.artifact.size_bytes),
            figures.accuracy(1 - reference.errors / reference.n),
            reference.agreement.noise_class,
        )
    for missing in manifest.missing:
        table.add_row(Text(missing.name, style="bright_black"), "not built", "", "", missing.reason)
    return table


def _manifest_bytes(directory: Path, digest: str) -> bytes:
    path = directory / manifests.MANIFEST_NAME
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"cannot read {path}: {error.strerror}; nothing was pushed") from None
    if manifests.digest(payload) != digest:
        raise ReleaseError(f"{path} was changed while it was read; nothing was pushed")
    return payload


@contextmanager
def _progress(missing: list[FileRef]) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many bytes went out: a bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not (console.is_terminal and missing), transient=True) as bar:
        task = bar.add_task("", total=sum(reference.size_bytes for reference in missing))
        yield lambda size_bytes: bar.advance(task, size_bytes)
