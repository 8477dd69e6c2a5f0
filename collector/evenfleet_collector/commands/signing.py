"""`evenfleet release keygen`, `sign` and `verify`: what of `release` asks no collector."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from evenfleet_collector import figures
from evenfleet_collector.commands.asking import json_option
from evenfleet_collector.commands.printing import print_json
from evenfleet_shared import trust
from evenfleet_shared.errors import ArtifactError, ConfigError
from evenfleet_shared.signature import PublicKey
from evenfleet_shared.trust import Checked

Directory: Final = click.Path(path_type=Path)

_CODES = """\b
Exit codes: 0 done; 1 failed, a damaged or changed file, a signature that does not hold or is missing;
2 bad arguments, or a file of keys that is none.
"""


@click.command("keygen", epilog="\b\nExample:\n  evenfleet release keygen --out release.key\n\n" + _CODES)
@click.option(
    "--out",
    "key",
    required=True,
    type=Directory,
    metavar="KEY",
    help="Write the private key there, readable by you alone, and the public key to KEY.pub. Existing files are refused.",
)
@json_option
def keygen(*, key: Path, as_json: bool) -> None:
    """Make a key pair to sign releases with.

    Keep KEY where releases are made, out of any repository. Give KEY.pub to whoever checks them, by another way than the
    releases go. On failure no file is left.
    """
    made = trust.new_private_key()
    public = trust.write_keys(key, made)
    name = made.public.id
    if as_json:
        print_json({"key": name, "private": str(key), "public": str(public)})
    else:
        click.echo(f"key {name}\n  sign with {key}, which stays with you\n  give {public} to whoever checks")


@click.command("sign", epilog="\b\nExample:\n  evenfleet release sign release/ --key release.key\n\n" + _CODES)
@click.argument("directory", type=Directory, metavar="DIR")
@click.option(
    "--key", required=True, type=Directory, metavar="KEY", help="The private key, as 'keygen' or openssl wrote it."
)
@json_option
def sign(*, directory: Path, key: Path, as_json: bool) -> None:
    """Check every file of the release in DIR and sign it; its digest stays, and other keys' signatures too.

    The signature is DIR/signatures/<key>.json and is pushed along. On failure nothing is signed.
    """
    private = trust.read_private_key(key)
    if key.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(f"--key: {key} lies in the release itself, and would be handed on with it; move it out")
    if (mode := stat.S_IMODE(key.stat().st_mode)) & 0o077:
        click.echo(f"evenfleet: note: {key} is open to others (mode {mode:04o}); chmod 600 it", err=True)
    checked = checked_release(directory, [private.public])
    path = trust.write(directory, private.sign(checked.digest))
    if as_json:
        print_json({"release": checked.digest, "key": private.public.id, "signature": str(path)})
    else:
        click.echo(f"{checked.digest} is signed by key {figures.short(private.public.id)}: {path}")


@click.command(
    "verify",
    epilog="\b\nExample:\n  evenfleet release verify release/ --trust release.key.pub --require-signature\n\n" + _CODES,
)
@click.argument("directory", type=Directory, metavar="DIR")
@click.option(
    "--trust",
    "keys",
    multiple=True,
    type=Directory,
    metavar="PATH",
    envvar="EVENFLEET_TRUST",
    show_envvar=True,
    help="A public key that you trust, or a folder of such (*.pub); may be repeated. Never one that lies in DIR.",
)
@click.option("--require-signature", is_flag=True, help="Fail unless a trusted key has signed the release.")
@json_option
def verify(*, directory: Path, keys: tuple[Path, ...], require_signature: bool, as_json: bool) -> None:
    """Check the release in DIR: every file against the manifest, and signatures by the keys you trust.

    Asks no collector. Fails at the first file that is missing, changed, or not the release's own, and names it. A signature
    by a key that is not trusted is told of, and proves nothing.
    """
    if require_signature and not keys:
        raise ConfigError("--require-signature: expected a key that you trust, --trust PATH, found none")
    checked = checked_release(directory, trust.read_trusted(keys, directory))
    if require_signature and not checked.trusted:
        found = f"is signed by unknown keys alone: {_names(checked.unknown)}" if checked.unknown else "is not signed"
        raise ArtifactError(
            f"release {figures.short(checked.digest)} {found}; expected the signature of a key that --trust names"
        )
    if as_json:
        print_json(
            {
                "release": checked.digest,
                "model": checked.manifest.model,
                "files": len(checked.manifest.files),
                "intact": True,
                "signed_by": checked.trusted,
                "unknown_keys": checked.unknown,
            }
        )
        return
    click.echo(
        f"{checked.digest}  {checked.manifest.model}: all {len(checked.manifest.files)} files are those of the manifest"
    )
    for line in _said(checked, with_keys=bool(keys)):
        click.echo(line)


def checked_release(directory: Path, trusted: Sequence[PublicKey] = ()) -> Checked:
    """Check the release in a directory that a person named.

    Raises:
        ConfigError: It is no directory.
        ArtifactError: It is not whole, or not as it was signed.
    """
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise ConfigError(f"DIR: expected the directory of a release, found {found} at {directory}")
    return trust.check(directory, trusted)


def _said(checked: Checked, *, with_keys: bool) -> list[str]:
    if not checked.signatures:
        return ["not signed"]
    lines = [f"signed by key {figures.short(name)}, which you trust" for name in checked.trusted]
    why = "is unknown: --trust names no such key" if with_keys else "was not checked: --trust names the keys you trust"
    return lines + [f"a signature by key {figures.short(name)} {why}" for name in checked.unknown]


def _names(keys: Sequence[str]) -> str:
    return ", ".join(map(figures.short, keys))
