"""`evenfleet release`: push, list, show, tag and assign releases; `signing` has what asks no collector."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from evenfleet_collector import figures
from evenfleet_collector.client import Collector
from evenfleet_collector.commands.asking import check_release, json_option, url_option
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_collector.commands.signing import Directory, checked_release, keygen, sign, verify
from evenfleet_collector.resources import EVERY_DEVICE, TAG_RULE, is_tag
from evenfleet_shared import manifest as manifests
from evenfleet_shared.errors import ConfigError, ReleaseError
from evenfleet_shared.manifest import Envelope, FileRef, Manifest, ReferenceResult
from evenfleet_shared.topics import DEVICE_ID_RULE, is_device_id

_EXAMPLE = "\b\nExample:\n  evenfleet release push release/\n  evenfleet release assign 9f2c11 --all\n\n"

_CODES = """\b
Exit codes: 0 done; 1 failed, a damaged file, or the collector does not answer; 2 bad arguments;
3 refused by the collector.
"""


@click.group(epilog=_EXAMPLE + _CODES, context_settings=CONTEXT)
def release() -> None:
    """Sign, verify, push, list, show, tag and assign releases."""


for command in (keygen, sign, verify):
    release.add_command(command)


@release.command("push", epilog="\b\nExample:\n  evenfleet release push release/\n\n" + _CODES)
@click.argument("directory", type=Directory, metavar="DIR")
@url_option
@json_option
def push(*, directory: Path, url: str, as_json: bool) -> None:
    """Check the release in DIR, upload what the collector does not have, and print the release's digest.

    The manifest and the signatures go last: on failure the release is not there, and the next push goes on where this one
    stopped, in the middle of a file too.
    """
    checked = checked_release(directory)
    manifest, digest = checked.manifest, checked.digest
    payload = _manifest_bytes(directory, digest)
    with Collector(url) as collector:
        wanted = {reference.sha256: reference for reference in manifest.files}
        missing = [reference for reference in wanted.values() if not collector.has_artifact(reference.sha256)]
        with _progress(missing) as sent:
            for reference in missing:
                collector.put_artifact(directory / reference.file, reference, partial(sent, reference.sha256))
        row = collector.add_release(payload)
        for signature in checked.signatures:
            row = collector.add_signature(signature)
    if as_json:
        print_json(
            {
                "release": row.release,
                "model": row.model,
                "uploaded": [item.file for item in missing],
                "signatures": [signature.key for signature in checked.signatures],
            }
        )
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
    for column in ("release", "tags", "model", "variants", "pushed", "signed by"):
        table.add_column(column, overflow="fold")
    for row in rows:
        variants = ", ".join(variant.name for variant in row.manifest.variants)
        signed_by = ", ".join(figures.short(signature.key) for signature in row.signatures)
        table.add_row(
            figures.short(row.release),
            ", ".join(row.tags),
            row.model,
            variants,
            figures.instant(row.pushed_s),
            signed_by,
        )
    show(table)


@release.command("show", epilog="\b\nExample:\n  evenfleet release show 9f2c11\n\n" + _CODES)
@click.argument("digest", metavar="RELEASE")
@url_option
@json_option
def show_release(*, digest: str, url: str, as_json: bool) -> None:
    """Show a release's tags, keys and variants. RELEASE is a tag, a digest, or at least 4 digits of its start.

    The collector keeps signatures and has no keys to check them with; 'release verify' has.
    """
    check_release(digest)
    with Collector(url) as collector:
        row = collector.release(digest)
    if as_json:
        print_json(row)
        return
    tags = f"tags: {', '.join(row.tags) or 'none'}"
    signed = ["signed by these keys, which are not checked here:" if row.signatures else "not signed"]
    signed += [f"  {signature.key}" for signature in row.signatures]
    show(Text(f"{row.model} {row.release}", style="bold"), tags, *signed, render_manifest(row.manifest))


@release.command("tag", epilog="\b\nExample:\n  evenfleet release tag 9f2c11 prod\n\n" + _CODES)
@click.argument("digest", metavar="RELEASE")
@click.argument("tag", metavar="TAG")
@url_option
@json_option
def tag_release(*, digest: str, tag: str, url: str, as_json: bool) -> None:
    """Let TAG stand for RELEASE, wherever a release is asked for. A tag that stands for another is moved.

    Devices that were assigned by the tag keep the release that it stood for then. On failure the tag stays where it was.
    """
    check_release(digest)
    _check_tag(tag)
    with Collector(url) as collector:
        before = next((row.release for row in collector.tags() if row.tag == tag), None)
        row = collector.put_tag(tag, digest)
    if as_json:
        print_json(row)
        return
    moved = f", moved from {figures.short(before)}" if before not in {None, row.release} else ""
    click.echo(f"{tag} is {figures.short(row.release)}{moved}")


@release.command("untag", epilog="\b\nExample:\n  evenfleet release untag prod\n\n" + _CODES)
@click.argument("tag", metavar="TAG")
@url_option
@json_option
def untag(*, tag: str, url: str, as_json: bool) -> None:
    """Take TAG away; the release stays, and so does what was assigned by the tag."""
    _check_tag(tag)
    with Collector(url) as collector:
        row = collector.tag(tag)
        collector.remove_tag(tag)
    if as_json:
        print_json(row)
    else:
        click.echo(f"{tag} was {figures.short(row.release)} and is no tag any more")


@release.command("assign", epilog="\b\nExample:\n  evenfleet release assign 9f2c11 --device press-07\n\n" + _CODES)
@click.argument("digest", metavar="RELEASE")
@click.option("--device", "devices", multiple=True, metavar="ID", help="A device; may be repeated.")
@click.option("--all", "every", is_flag=True, help="Every device that is not assigned a release by its name.")
@url_option
@json_option
def assign(*, digest: str, devices: tuple[str, ...], every: bool, url: str, as_json: bool) -> None:
    """Let devices run a release. RELEASE is a tag, a digest, or at least 4 digits of its start.

    A tag is looked up now: devices stay with this release when it is moved.

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
    """Return a release's variants as a table: file, size, what each scored where the release was built, and its envelope."""
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    columns = ("variant", "format", "size", "accuracy", "agreement", *(("envelope",) if manifest.envelope else ()))
    for column in columns:
        table.add_column(column, justify="right" if column in {"size", "accuracy"} else "left", overflow="fold")
    for variant in manifest.variants:
        reference = variant.reference
        table.add_row(
            Text(variant.name, style="bold" if variant.name == manifest.reference_variant else ""),
            variant.format,
            figures.size(variant.artifact.size_bytes),
            _scored(reference),
            reference.agreement.noise_class,
            *(
                ("\n".join(_expected(one) for one in manifest.envelope if one.variant == variant.name),)
                if manifest.envelope
                else ()
            ),
        )
    for missing in manifest.missing:
        table.add_row(Text(missing.name, style="bright_black"), "not built", "", "", missing.reason)
    return table


def _scored(reference: ReferenceResult) -> str:
    right = figures.accuracy(1 - reference.errors / reference.n)
    if reference.metric is None or reference.score is None:
        return right
    return f"{right}, {figures.score(reference.metric, reference.score)}"


def _expected(envelope: Envelope) -> str:
    latency, memory = figures.latency(envelope.p95_ms), figures.size(envelope.peak_rss_bytes)
    return f"{envelope.device_class}: p95 {latency}, peak {memory}"


def _manifest_bytes(directory: Path, digest: str) -> bytes:
    path = directory / manifests.MANIFEST_NAME
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"cannot read {path}: {error.strerror}; nothing was pushed") from None
    if manifests.digest(payload) != digest:
        raise ReleaseError(f"{path} was changed while it was read; nothing was pushed")
    return payload


def _check_tag(text: str) -> None:
    if not is_tag(text):
        raise ConfigError(f"TAG: expected {TAG_RULE}; found {text!r}")


@contextmanager
def _progress(missing: list[FileRef]) -> Iterator[Callable[[str, int], None]]:
    """Give a function that is told how many bytes of a file are there: a bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not (console.is_terminal and missing), transient=True) as bar:
        task = bar.add_task("", total=sum(reference.size_bytes for reference in missing))
        there: dict[str, int] = {}

        def sent(sha256: str, size_bytes: int) -> None:
            there[sha256] = size_bytes
            bar.update(task, completed=sum(there.values()))

        yield sent
