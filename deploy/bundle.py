"""Make a bundle with which an agent is installed on a board that has no network: wheels, and a script that installs them.

    python3.11 deploy/bundle.py BUNDLE --machine armhf

It is for the Python version that makes it. Wheels come from the index that pip is set up with. On arm64 all are there; on
armv7 the runtime and the pure ones are, numpy and PyNaCl come from Debian on the board, and msgspec is compiled here.

* Only what pip was told is in it, at the versions of the constraints; nothing is taken from this machine's environment.
* The board checks every file's sha256 before it uses one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import debian
from debian import MACHINES, Archive, Machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT: Final = Path(__file__).resolve().parents[1]
HERE: Final = ROOT / "deploy"
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
EXTRAS: Final = {"arm64": ("agent", "litert"), "armhf": ("agent", "tflite")}
# No wheel of these is there for armv7: what Debian has, as package and as module, and what is built here.
# Debian's PyNaCl needs no cffi to run; pip wants to see it all the same, for it is what PyNaCl says of itself.
FROM_DEBIAN: Final = {
    "numpy": ("python3-numpy", "numpy"),
    "pynacl": ("python3-nacl", "nacl"),
    "cffi": ("python3-cffi", "cffi"),
}
BUILT: Final = ("msgspec",)
BUILT_WITH: Final = ("setuptools", "setuptools-scm", "wheel")
COPIED: Final = ("install.sh", "evenfleet-agent.service", "evenfleet.sysusers.conf")
# The C library of Debian 12; wheels for an older one run there too.
_GLIBC_MINOR: Final = 36


def requirements(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """Return what the project asks for with some extras, as it is written in `[project]`."""
    optional: Mapping[str, list[str]] = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def name_of(requirement: str) -> str:
    """Return a requirement's package, spelt as indexes do.

    >>> name_of("PyNaCl>=1.5; python_version < '3.12'")
    'pynacl'
    """
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pins(texts: Iterable[str]) -> dict[str, str]:
    """Return the pins of some constraint files by package; a later file's stand for an earlier one's."""
    lines = (line.strip() for text in texts for line in text.splitlines())
    return {name_of(line): line for line in lines if line and not line.startswith("#")}


def platforms(machine: Machine) -> list[str]:
    """Return the tags of wheels that a board of Debian 12 can load, as options of pip."""
    tags = [f"manylinux_2_{minor}_{machine.machine}" for minor in range(_GLIBC_MINOR, 16, -1)]
    tags += [f"manylinux2014_{machine.machine}", f"linux_{machine.machine}"]
    return [part for tag in tags for part in ("--platform", tag)]


def bundle(out: Path, machine: Machine, more_pins: Sequence[str], listed: Path | None) -> None:
    """Make a bundle in a directory that is not there yet.

    Raises:
        SystemExit: It is there, a wheel cannot be had or built, or this Python is not one for it.
    """
    if out.exists():
        raise SystemExit(f"{out} is there already; remove it, or name another directory")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = EXTRAS[machine.architecture]
    files = ["constraints.txt", *(["constraints-tflite.txt"] if "tflite" in extras else [])]
    pinned = pins([*((ROOT / file).read_text(encoding="utf-8") for file in files), "\n".join(more_pins)])
    with tempfile.TemporaryDirectory(prefix="evenfleet-bundle-") as name:
        work = Path(name)
        constraints = work / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in pinned.values()))
        whole = work / "bundle"
        wheels = whole / "wheels"
        wheels.mkdir(parents=True)
        _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT), constraints=constraints)
        (own,) = wheels.glob("evenfleet-*.whl")
        # pip takes another machine's wheels only where it may take nothing but wheels.
        fetch = [
            "download",
            "--dest",
            str(wheels),
            "--only-binary",
            ":all:",
            *platforms(machine),
            "--python-version",
            PYTHON,
        ]
        needs_debian = machine.architecture == "armhf"
        if needs_debian:
            wanted = [line for line in requirements(project, extras) if name_of(line) not in {*FROM_DEBIAN, *BUILT}]
            _pip(*fetch, "--no-deps", *wanted, constraints=constraints)
            for package in BUILT:
                _build(pinned[package], wheels, machine, work, listed or debian.sources(), constraints)
        else:
            _pip(*fetch, f"{own}[{','.join(extras)}]", constraints=constraints)
        for file in COPIED:
            shutil.copy(HERE / file, whole)
        about = {
            "version": project["version"],
            "extras": ",".join(extras),
            "python_version": PYTHON,
            "bits": machine.bits,
            "machine": machine.machine,
            "kernels": " ".join(machine.kernels),
            "system_packages": " ".join(package for package, _ in FROM_DEBIAN.values()) if needs_debian else "",
            "system_modules": " ".join(module for _, module in FROM_DEBIAN.values()) if needs_debian else "",
        }
        (whole / "about").write_text("".join(f"{name}='{value}'\n" for name, value in about.items()))
        listing = [path for path in sorted(whole.rglob("*")) if path.is_file()]
        (whole / "SHA256SUMS").write_text(
            "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(whole)}\n" for path in listing)
        )
        shutil.copytree(whole, out)


def _build(requirement: str, wheels: Path, machine: Machine, work: Path, listed: Path, constraints: Path) -> None:
    """Compile a wheel for the board with Debian's cross compiler, the board's headers and what its Python was built with."""
    compiler = f"{machine.triplet}-gcc"
    if shutil.which(compiler) is None or not Path(f"/usr/{machine.triplet}/include/math.h").exists():
        raise SystemExit(
            f"{compiler} or its C library is not here; {requirement} is compiled with them: "
            f"apt-get install gcc-{machine.triplet} libc6-dev-{machine.architecture}-cross"
        )
    archive = Archive(machine, work / "apt", listed)
    unpacked = work / "python"
    for package in (f"libpython{PYTHON}-dev", f"libpython{PYTHON}-minimal"):
        debian.unpack(archive.fetch_alone(package), unpacked)
    described = f"_sysconfigdata__{machine.triplet}"
    # Alone in a folder: with it would come the board's whole standard library.
    (work / "described").mkdir()
    shutil.copy(unpacked / "usr/lib" / f"python{PYTHON}" / f"{described}.py", work / "described")
    builder = work / "builder"
    venv.create(builder, with_pip=True)
    python = str(builder / "bin" / "python")
    _pip("install", "--upgrade", *BUILT_WITH, constraints=constraints, python=python)
    include = unpacked / "usr" / "include"
    _pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-binary", name_of(requirement)),
        *("--wheel-dir", str(wheels), requirement),
        constraints=constraints,
        python=python,
        told={
            "_PYTHON_HOST_PLATFORM": f"linux-{machine.machine}",
            "_PYTHON_SYSCONFIGDATA_NAME": described,
            "PYTHONPATH": str(work / "described"),
            "CC": compiler,
            "LDSHARED": f"{compiler} -shared",
            "CFLAGS": f"-O2 -g0 -I{include}/python{PYTHON} -I{include}",
        },
    )


def _pip(
    *arguments: str, constraints: Path, python: str = sys.executable, told: Mapping[str, str] | None = None
) -> None:
    pinned = {"PIP_CONSTRAINT": str(constraints), "PIP_BUILD_CONSTRAINT": str(constraints)}
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments],
        env={**os.environ, **pinned, **(told or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if line.lower().lstrip().startswith("error")]
        why = errors[-1].strip() if errors else done.stdout.strip()[-300:]
        raise SystemExit(f"pip {arguments[0]} failed: {why}")


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the directory to make")
    parser.add_argument("--machine", choices=sorted(MACHINES), required=True)
    parser.add_argument(
        "--pin", action="append", default=[], metavar="NAME==VERSION", help="in place of the constraint's"
    )
    parser.add_argument("--sources", type=Path, help="the file that names Debian's archives, this machine's by default")
    given = parser.parse_args()
    bundle(given.out, MACHINES[given.machine], given.pin, given.sources)
    size_mb = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file()) / 1e6
    print(f"made {given.out}, {size_mb:.1f} MB; on the board: sh {given.out.name}/install.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
