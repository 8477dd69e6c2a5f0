"""What a power cut at any instant may leave of files: calls are recorded as a process makes them, and replayed short.

The strict view of POSIX. What is certain after a cut is the content of a file as of its last fsync, and the names in a
directory as of the directory's. Everything later may be there or not: each write whole, torn at a sector or missing, and
of a directory's changes any first part. `power_record.c` does the recording, by LD_PRELOAD.

A process says what it was promised by writing lines to a file named `marks` below the root; that is not replayed.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

SECTOR: Final = 512
MARKS: Final = "marks"

# What becomes of what was not synced: as chance has it, or all of one kind and nothing of the other.
Mercy = Literal["chance", "nothing", "names", "content", "all"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call that succeeded: its letter and its fields as they were recorded."""

    what: str
    inode: int
    fields: tuple[str, ...]


@dataclass(slots=True)
class _File:
    """A file's content: what is certain, and the calls since."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # offset, bytes; None cuts off there

    def sync(self) -> None:
        self.synced = self._with(self.pending)
        self.pending = []

    def after_a_cut(self, mercy: Mercy, chance: random.Random) -> bytes:
        if mercy in ("content", "all"):
            return self._with(self.pending)
        if mercy != "chance":
            return self.synced
        kept = []
        for offset, data in self.pending:
            if chance.random() < 0.5:
                continue
            torn = data is not None and len(data) > SECTOR and chance.random() < 0.5
            whole = None if data is None else len(data)
            sectors = SECTOR * chance.randrange(1, (whole - 1) // SECTOR + 1) if torn and whole else whole
            kept.append((offset, None if data is None else data[:sectors]))
        return self._with(kept)

    def _with(self, writes: Sequence[tuple[int, bytes | None]]) -> bytes:
        content = bytearray(self.synced)
        for offset, data in writes:
            if data is None:
                del content[offset:]
                content.extend(bytes(offset - len(content)))
            else:
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
        return bytes(content)


@dataclass(slots=True)
class _Folder:
    """A directory's names: those that are certain, and the changes since. A name stands for a node, or for a link."""

    synced: dict[str, int | str] = field(default_factory=dict)
    pending: list[tuple[str, int | str | None]] = field(default_factory=list)
    # How many of the changes are one step: a rename within a directory takes and gives a name at once.
    steps: list[int] = field(default_factory=list)

    def change(self, *changes: tuple[str, int | str | None]) -> None:
        self.pending += changes
        self.steps.append(len(changes))

    def names(self, steps: int | None = None) -> dict[str, int | str]:
        names = dict(self.synced)
        for name, node in self.pending[: sum(self.steps[:steps])]:
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node
        return names

    def sync(self) -> None:
        self.synced, self.pending, self.steps = self.names(), [], []

    def after_a_cut(self, mercy: Mercy, chance: random.Random) -> dict[str, int | str]:
        if mercy in ("names", "all"):
            return self.names()
        return self.names(chance.randint(0, len(self.steps)) if mercy == "chance" else 0)


class Disk:
    """A directory as it becomes while calls are replayed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[int, _Folder] = {0: _Folder()}
        self._files: dict[int, _File] = {}
        # The kernel gives a number again when a file has gone: what it means now.
        self._nodes: dict[int, int] = {}
        self._last = 0
        self._marks: int | None = None
        self.marks: list[str] = []

    def apply(self, call: Call) -> None:
        if call.what in "cm":
            self._make(call)
        elif call.what == "w":
            data = bytes.fromhex(call.fields[1])
            if call.inode == self._marks:
                self.marks += data.decode().splitlines()
            elif call.inode in self._nodes:
                self._files[self._nodes[call.inode]].pending.append((int(call.fields[0]), data))
        elif call.what == "t":
            self._files[self._nodes[call.inode]].pending.append((int(call.fields[0]), None))
        elif call.what == "s":
            self._files[self._nodes[call.inode]].sync()
        elif call.what == "d":
            self._folders[self._nodes.get(call.inode, 0)].sync()
        elif call.what == "r":
            self._rename(call.fields[0], call.fields[1])
        else:
            folder, name = self._place(call.fields[0])
            folder.change((name, None if call.what == "u" else f"link:{call.fields[1]}"))

    def write_out(self, target: Path, mercy: Mercy, chance: random.Random) -> None:
        """Write to a new directory what a cut now may leave."""
        self._write_folder(0, target, mercy, chance)

    def _write_folder(self, node: int, target: Path, mercy: Mercy, chance: random.Random) -> None:
        target.mkdir()
        for name, found in self._folders[node].after_a_cut(mercy, chance).items():
            if isinstance(found, str):
                (target / name).symlink_to(found.removeprefix("link:"))
            elif found in self._folders:
                self._write_folder(found, target / name, mercy, chance)
            else:
                (target / name).write_bytes(self._files[found].after_a_cut(mercy, chance))

    def _make(self, call: Call) -> None:
        folder, name = self._place(call.fields[0])
        if name == MARKS:
            self._marks = call.inode
            return
        self._last += 1
        self._nodes[call.inode] = self._last
        if call.what == "m":
            self._folders[self._last] = _Folder()
        else:
            self._files[self._last] = _File()
        folder.change((name, self._last))

    def _rename(self, source: str, target: str) -> None:
        (old_folder, old), (new_folder, new) = self._place(source), self._place(target)
        node = old_folder.names()[old]
        if old_folder is new_folder:
            old_folder.change((old, None), (new, node))
        else:
            new_folder.change((new, node))
            old_folder.change((old, None))

    def _place(self, path: str) -> tuple[_Folder, str]:
        *folders, name = Path(path).relative_to(self._root).parts
        node = 0
        for part in folders:
            found = self._folders[node].names()[part]
            if isinstance(found, str):
                # Our only links are to a neighbour.
                found = self._folders[node].names()[found.removeprefix("link:")]
            assert isinstance(found, int)
            node = found
        return self._folders[node], name


def build_recorder(directory: Path) -> Path:
    """Compile the recorder; needs gcc."""
    library = directory / "power_record.so"
    source = Path(__file__).with_name("power_record.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    return library


def read_calls(log: Path) -> list[Call]:
    calls = []
    for line in log.read_text(encoding="utf-8").splitlines():
        what, inode, *fields = line.split("\t")
        calls.append(Call(what, int(inode), tuple(fields)))
    return calls


def cuts(
    calls: Sequence[Call],
    root: Path,
    target: Callable[[], Path],
    mercies: Sequence[Mercy],
    chance: random.Random,
    *,
    every: int = 1,
    start: int = 0,
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield, for cuts after each `every`th call from one on, a directory as it may be left and the marks made before."""
    disk = Disk(root)
    for index, call in enumerate(calls):
        disk.apply(call)
        if index < start:
            continue
        if index % every == 0 or index == len(calls) - 1:
            for mercy in mercies:
                left = target()
                disk.write_out(left, mercy, chance)
                yield left, tuple(disk.marks)
