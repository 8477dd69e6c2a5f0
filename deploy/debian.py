"""Fetch Debian packages of another architecture and unpack them, without touching this machine's own packages.

apt runs on lists, states and caches in a directory of its own: nothing here needs root, nothing is installed, and the
architecture is not added to this machine. Leaves what is done with the files to others.

* Packages are checked by apt against this machine's Debian keys, as its own are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCES: Final = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A kind of board.

    Attributes:
        architecture: Debian's name for it.
        triplet: The compiler's.
        machine: What the kernel calls it, and Python's wheels with it.
        qemu: The emulator of its programs, and under which name that has been registered by its package.
        emulated_cpu: Named, so that two emulations are alike.
        bits: Of a pointer.
        kernels: What the kernels that run its programs call themselves.
    """

    architecture: str
    triplet: str
    machine: str
    qemu: str
    emulated_cpu: str
    bits: int
    kernels: tuple[str, ...]


MACHINES: Final = {
    found.architecture: found
    for found in (
        Machine(
            architecture="arm64",
            triplet="aarch64-linux-gnu",
            machine="aarch64",
            qemu="qemu-aarch64",
            emulated_cpu="cortex-a72",
            bits=64,
            kernels=("aarch64",),
        ),
        Machine(
            architecture="armhf",
            triplet="arm-linux-gnueabihf",
            machine="armv7l",
            qemu="qemu-arm",
            emulated_cpu="cortex-a15",
            bits=32,
            kernels=("armv7l", "armv8l", "aarch64"),
        ),
    )
}


def sources() -> Path:
    """Return this machine's list of Debian's archives.

    Raises:
        SystemExit: There is none.
    """
    found = next((path for path in SOURCES if path.is_file()), None)
    if found is None:
        raise SystemExit(f"no Debian archive is named in {' or '.join(map(str, SOURCES))}; give one with --sources")
    return found


class Archive:
    """Debian's packages for one architecture.

    Args:
        machine: For which.
        work: A directory for what apt keeps; used again, it spares the download.
        listed: The file that names the archives.
    """

    def __init__(self, machine: Machine, work: Path, listed: Path) -> None:
        self._packages = work / "cache" / "archives"
        for folder in (work / "lists" / "partial", self._packages / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (work / "status").touch()
        options = {
            "APT::Architecture": machine.architecture,
            "APT::Architectures": machine.architecture,
            "APT::Sandbox::User": "",
            "Dir::State": work,
            "Dir::State::lists": work / "lists",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "Dir::Etc::sourcelist": listed.resolve(),
            "Dir::Etc::sourceparts": "-",
        }
        self._apt = ["apt-get", "-qq", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
        try:
            _run([*self._apt, "update"])
        except SystemExit as error:
            # One list of several, of a mirror that is being renewed; what is missing then is named by what needs it.
            print(f"note: {error}; going on with the lists that came", file=sys.stderr)

    def fetch(self, packages: Sequence[str]) -> list[Path]:
        """Return the package files of some packages and of all that they depend on."""
        _run([*self._apt, "install", "--yes", "--no-install-recommends", "--download-only", *packages])
        return sorted(self._packages.glob("*.deb"))

    def fetch_alone(self, package: str) -> Path:
        """Return a package's file, without what it depends on."""
        for old in self._packages.glob(f"{package}_*.deb"):
            old.unlink()
        _run([*self._apt, "download", package], cwd=self._packages)
        return next(self._packages.glob(f"{package}_*.deb"))


def unpack(package: Path, directory: Path) -> None:
    """Unpack a package's files; its scripts are not run."""
    _run(["dpkg-deb", "--extract", str(package), str(directory)])


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is not here; this works on Debian and its like") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it did not say why"]
        raise SystemExit(f"{command[0]} ended with code {done.returncode}: {lines[0]}")
