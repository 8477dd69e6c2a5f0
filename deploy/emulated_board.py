"""Make an emulated board: the userland of Debian on arm64 or armhf, whose programs QEMU runs on this machine's kernel.

    python deploy/emulated_board.py make BOARD --machine armhf
    python deploy/emulated_board.py run BOARD --bind ./bundle -- python3 --version

`make` unpacks Debian's packages into a directory; nothing is booted and no package script is run. `run` starts a program
in there, within namespaces of its own: the emulator is registered with the kernel for that program and its children
alone, so it needs no root from Linux 6.7 on. The network is this machine's, loopback included: an agent in there reaches
a collector out here.

What it is good for: wheels, 32 bits, other byte layouts, other libraries. What it says of latency and memory means nothing.
The kernel is this machine's too, and so are /proc and /sys.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import debian
from debian import MACHINES, Archive, Machine

PACKAGES: Final = ("base-files", "ca-certificates", "coreutils", "dash", "libstdc++6", "python3", "python3-venv")
# On armv7 Python's own index has no wheels of these.
MORE: Final = {"armhf": ("python3-cffi", "python3-nacl", "python3-numpy")}
_DESCRIBED: Final = "board.json"
# What Debian's scripts would link.
_ALTERNATIVES: Final = {"libblas.so.3": "blas/libblas.so.3", "liblapack.so.3": "lapack/liblapack.so.3"}
_FILES: Final = {
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
}
# $1 is the board, $2 the emulator's line for the kernel, $3 the folders to show in there; the rest is the command.
_ENTER: Final = """
set -eu
root=$1 line=$2 shown=$3
shift 3
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' "$line" > /proc/sys/fs/binfmt_misc/register
for folder in /proc /sys /dev; do mount --rbind "$folder" "$root$folder"; done
printf '%s\\n' "$shown" | while read -r folder; do
    [ -n "$folder" ] || continue
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
done
exec chroot "$root" "$@"
"""


def make(board: Path, machine: Machine, listed: Path, more: Sequence[str]) -> None:
    """Unpack a board's userland into a directory that is not there yet.

    Raises:
        SystemExit: The directory is there, or a package cannot be had.
    """
    if board.exists():
        raise SystemExit(f"{board} is there already; remove it, or name another directory")
    root = board / "root"
    root.mkdir(parents=True)
    try:
        for package in Archive(machine, board / "apt", listed).fetch(
            [*PACKAGES, *MORE.get(machine.architecture, ()), *more]
        ):
            debian.unpack(package, root)
    except BaseException:
        shutil.rmtree(board)
        raise
    libraries = root / "usr" / "lib" / machine.triplet
    for name, target in _ALTERNATIVES.items():
        if (libraries / target).exists() and not (libraries / name).exists():
            (libraries / name).symlink_to(target)
    for folder in ("proc", "sys", "dev", "root"):
        (root / folder).mkdir(exist_ok=True)
    (root / "tmp").mkdir(mode=0o1777, exist_ok=True)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (board / _DESCRIBED).write_text(json.dumps({"architecture": machine.architecture}) + "\n")


def command(board: Path, shown: Sequence[Path], wanted: Sequence[str]) -> list[str]:
    """Return the command that runs another one on a board.

    Args:
        board: What `make` made.
        shown: Directories of this machine that are there under the same path.
        wanted: The command, as it is on the board.

    Raises:
        SystemExit: There is no board, or no emulator for it.
    """
    try:
        described = json.loads((board / _DESCRIBED).read_text())
    except OSError:
        raise SystemExit(f"{board} is no emulated board; make one with 'make'") from None
    machine = MACHINES[described["architecture"]]
    line = Path(f"/usr/lib/binfmt.d/{machine.qemu}.conf")
    if not line.is_file():
        raise SystemExit(f"{line} is not here; install the emulator: apt-get install qemu-user-static")
    folders = "\n".join(str(folder.resolve()) for folder in shown)
    root = str((board / "root").resolve())
    return [
        *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _ENTER, "sh"),
        *(root, line.read_text().strip(), folders, *wanted),
    ]


def environment(board: Path) -> dict[str, str]:
    """Return what a program on a board is told; nothing of this machine's own environment."""
    machine = MACHINES[json.loads((board / _DESCRIBED).read_text())["architecture"]]
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "QEMU_CPU": machine.emulated_cpu,
    }


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="unpack a board's userland")
    making.add_argument("board", type=Path)
    making.add_argument("--machine", choices=sorted(MACHINES), required=True)
    making.add_argument("--sources", type=Path, help="the file that names Debian's archives, this machine's by default")
    making.add_argument("--package", action="append", default=[], help="another Debian package; may be repeated")
    running = commands.add_parser("run", help="run a command on a board; give it after --")
    running.add_argument("board", type=Path)
    running.add_argument("--bind", action="append", type=Path, default=[], help="show a directory in there")
    running.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="set in its environment")
    running.add_argument("wanted", nargs="+", metavar="COMMAND")
    given = parser.parse_args()
    if given.command == "make":
        make(given.board, MACHINES[given.machine], given.sources or debian.sources(), given.package)
        print(f"made {given.board}; try: python {sys.argv[0]} run {given.board} -- python3 --version")
        return 0
    wanted = command(given.board, given.bind, given.wanted)
    told = environment(given.board) | dict(setting.partition("=")[::2] for setting in given.set)
    sys.stdout.flush()
    try:
        # In place of this process: whoever signals it reaches the program in there.
        os.execvpe(wanted[0], wanted, told)  # noqa: S606
    except FileNotFoundError:
        raise SystemExit("unshare is not here; it is in the package util-linux") from None


if __name__ == "__main__":
    sys.exit(main())
