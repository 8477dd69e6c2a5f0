"""Read what applications' probes have noted, and hand it to `appwindow`, one window per application and model.

Decides what of a directory that other users' processes write is believed. Leaves the figures to `appwindow`, the header,
the clock and the outbox to the supervisor, and what a probe writes to `probe`.

* Every file there is hostile until shown otherwise: its name only ever is one of a fixed form, it is opened as neither a
  link nor a pipe, is of the one size that a ring has, and is read, never mapped: shortened meanwhile, it is a short read.
* What one turn reads, and what is held in memory, is bounded whatever is there.
* A call is counted at most once, across restarts too: how far each ring was read is on disk before its window is handed
  out. A crash in between costs the windows of that moment.
* A ring whose writer is gone (its lock is free) is read to its end and removed.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import itertools
import logging
import os
import secrets
import stat
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_agent import probe
from evenfleet_agent.appwindow import Accumulator, AppBody, InputSample, Sample
from evenfleet_shared.disk import write_whole

log = logging.getLogger(__name__)

KEPT_NAME: Final = "probe.json"
# A group's, whose members cannot take each other's files away; the agent, its owner, can.
DIRECTORY_MODE: Final = 0o3770
GROUP: Final = "evenfleet-probe"
MAX_APPS: Final = 16
MAX_RINGS_OF_OWNER: Final = 16
# Names looked at in a directory, and records read, in one turn.
MAX_NAMES: Final = 1024
MAX_RECORDS: Final = 1 << 16

_CHUNK: Final = 256
# What a probe can count to; at a call each microsecond it takes 8 years.
_MAX_NUMBER: Final = 1 << 46
_NS_PER_MS: Final = 1e6
_SLOTS: Final = probe.RECORD_SLOTS
_MAX_KEPT_BYTES: Final = 1 << 16
_WORD: Final = struct.Struct("=Q")


class _Kept(msgspec.Struct, array_like=True):
    """How far a ring was read: its inode, the last call's and the last sample's number, samples told as unreadable."""

    inode: int
    calls: int
    samples: int
    unreadable: int


@dataclass(slots=True)
class _Ring:
    """One file, as far as it was read."""

    name: str
    app: str
    model: str | None
    kept: _Kept
    missed: int = 0
    hole: int = 0
    torn: int = 0
    is_done: bool = False


class _NotARing(Exception):  # noqa: N818 - a refusal, counted under its one word
    pass


class Intake:
    """The directory that applications leave their rings in."""

    def __init__(self, directory: Path, *, kept: Path, budget_ratio: float, group: str = GROUP) -> None:
        """Prepare; nothing is read or made yet.

        Args:
            directory: Where probes write.
            kept: The file that says how far each ring was read, in the agent's own directory.
            budget_ratio: What statistics may take of an application's inference time, told to probes that ask.
            group: Whose members may write where the directory has yet to be made; the agent has to be one.

        Raises:
            ValueError: The directory is the empty path, which is the working directory. Where none is to be read, make
                no intake.
        """
        if not directory.parts:
            raise ValueError(f"{str(directory)!r} is not a directory of rings")
        self._directory = directory
        self._kept_path = kept
        self._budget_ratio = budget_ratio
        self._group = group
        self._rings: dict[str, _Ring] = {}
        self._open: dict[tuple[str, str | None], Accumulator] = {}
        self._kept = _read_kept(kept)
        self._drafts: set[str] = set()
        # What was no ring, or no longer one, by inode: not read again, or what it said before would count twice.
        self._banned: dict[str, int] = {}
        self._told: set[tuple[str, int]] = set()
        self._refusals: Counter[str] = Counter()
        self._trouble: str | None = None

    @property
    def refusals(self) -> dict[str, int]:
        """How many files, and calls of applications beyond the bound, were refused since the start, by reason."""
        return dict(self._refusals)

    def trouble(self) -> str | None:
        """Return in a line what keeps applications from being counted, for `status`; None where nothing does.

        A directory that cannot be read is trouble until it can; what was refused since the start stays, for whoever was
        refused is not in any window. A directory that is not there is none: no application has to use a probe.
        """
        if self._trouble:
            return f"{self._directory}: cannot be read ({self._trouble}); applications are not counted"
        if not self._refusals:
            return None
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._refusals.most_common())
        return f"{self._directory}: not taken since the start: {reasons}"

    def prepare(self) -> None:
        """Make the directory where that is possible, and leave the budget in it for probes to read.

        One that is there keeps its group and mode: they may be somebody's choice.
        """
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(parents=True, exist_ok=True)
                self._give_to_group()
                self._directory.chmod(DIRECTORY_MODE)
            with self._opened() as folder:
                draft = f".budget-{secrets.token_hex(8)}"
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    os.fchmod(descriptor, 0o644)
                    file.write(f"{self._budget_ratio:g}")
                os.rename(draft, probe.BUDGET_NAME, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            log.info("applications cannot leave their figures in %s: %s", self._directory, error.strerror)

    def _give_to_group(self) -> None:
        try:
            os.chown(self._directory, -1, grp.getgrnam(self._group).gr_gid)
        except (KeyError, PermissionError):
            # The rule on a workbench, where applications run as the same user.
            log.info("%s is for the agent's own group: it is in no group %s", self._directory, self._group)

    def poll(self) -> None:
        """Read what was noted since the last time; often enough that no ring goes round in between."""
        try:
            with self._opened() as folder:
                self._poll(folder)
            self._trouble = None
        except FileNotFoundError:
            self._rings.clear()
            self._trouble = None
        except OSError as error:
            if error.strerror != self._trouble:
                self._trouble = error.strerror
                log.warning("cannot read %s: %s; applications are not counted", self._directory, error.strerror)

    def close_windows(self, *, length_s: float, uptime_s: float, wall_s: float) -> list[AppBody]:
        """Read once more and return a window for each application and model that made calls; new ones begin.

        Args:
            length_s: How long these windows were open.
            uptime_s: The monotonic clock, now.
            wall_s: The wall clock, now.
        """
        self.poll()
        self._keep()
        for ring in [ring for ring in self._rings.values() if ring.is_done]:
            self._remove(ring)
        closed = [
            accumulator.close(app=app, model=model, length_s=length_s, ended_uptime_s=uptime_s, ended_wall_s=wall_s)
            for (app, model), accumulator in sorted(self._open.items(), key=lambda item: (item[0][0], item[0][1] or ""))
            if not accumulator.is_empty
        ]
        self._open.clear()
        return closed

    # the directory

    @contextmanager
    def _opened(self) -> Iterator[int]:
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield folder
        finally:
            os.close(folder)

    def _poll(self, folder: int) -> None:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_NAMES)]
        found = {name for name in names if probe.RING_NAME.fullmatch(name)}
        drafts = {name for name in found if name.startswith(".")}
        self._remove_drafts(folder, drafts)
        # Those known before go first: a newcomer takes no one's place.
        wanted = sorted(found - drafts, key=lambda name: (name not in self._rings, name))
        owners: Counter[int] = Counter()
        left = MAX_RECORDS
        present: set[str] = set()
        for name in wanted:
            if len(present) >= probe.MAX_RINGS:
                self._refuse(name, 0, "too-many-rings")
                continue
            with self._file(folder, name) as descriptor:
                if descriptor is None:
                    continue
                status = os.fstat(descriptor)
                if owners[status.st_uid] >= MAX_RINGS_OF_OWNER:
                    self._refuse(name, status.st_ino, "too-many-rings-of-owner")
                    continue
                owners[status.st_uid] += 1
                present.add(name)
                gone = _is_free(descriptor)
                try:
                    ring = self._known(name, descriptor, status)
                    if left > 0 and not ring.is_done:
                        left -= self._read(ring, descriptor, left=left, gone=gone)
                except _NotARing as error:
                    self._refuse(name, status.st_ino, str(error))
                    self._rings.pop(name, None)
                    self._banned[name] = status.st_ino
                    if gone:
                        _unlink(folder, name)
        self._rings = {name: ring for name, ring in self._rings.items() if name in present}
        self._banned = {name: inode for name, inode in self._banned.items() if name in present}
        if len(present) > probe.MAX_RINGS // 2 or MAX_RINGS_OF_OWNER in owners.values():
            self._make_room()

    @contextmanager
    def _file(self, folder: int, name: str) -> Iterator[int | None]:
        """Open a file that anybody may have put there: never through a link, never waiting for a pipe's other end."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            self._refuse(name, 0, "cannot-open")
            if error.errno in (errno.ELOOP, errno.ENXIO):
                _unlink(folder, name)  # a link or a socket: no ring ever, and in a ring's place
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _known(self, name: str, descriptor: int, status: os.stat_result) -> _Ring:
        is_banned = self._banned.get(name) == status.st_ino
        if is_banned or not stat.S_ISREG(status.st_mode) or status.st_size != probe.FILE_BYTES:
            raise _NotARing("not-a-ring")
        ring = self._rings.get(name)
        if ring is not None and ring.kept.inode == status.st_ino:
            return ring
        ring = _header(name, descriptor, status.st_ino)
        kept = self._kept.get(name)
        if kept is not None and kept.inode == status.st_ino:
            ring.kept, ring.missed = kept, 0
        self._rings[name] = ring
        return ring

    def _make_room(self) -> None:
        """Remove what is done with now rather than at the window's end, where newcomers would find no room."""
        for ring in [ring for ring in self._rings.values() if ring.is_done]:
            self._remove(ring)

    def _remove(self, ring: _Ring) -> None:
        with suppress(OSError), self._opened() as folder:
            _unlink(folder, ring.name)
        self._rings.pop(ring.name, None)

    def _remove_drafts(self, folder: int, drafts: set[str]) -> None:
        """Remove what a process that died in between left: without a lock for two turns."""
        unheld = set()
        for name in drafts:
            with self._file(folder, name) as descriptor:
                if descriptor is not None and _is_free(descriptor):
                    unheld.add(name)
        for name in unheld & self._drafts:
            _unlink(folder, name)
        self._drafts = unheld

    def _refuse(self, name: str, inode: int, reason: str) -> None:
        """Count a file that is not taken, once, and log each reason the first time."""
        if (name, inode) in self._told:
            return
        if len(self._told) >= MAX_NAMES:
            self._told.clear()
        self._told.add((name, inode))
        self._count_refused(reason, name)

    def _count_refused(self, reason: str, name: str, count: int = 1) -> None:
        if reason not in self._refusals:
            log.warning("%s in %s is not taken: %s; told once for each reason", name, self._directory, reason)
        self._refusals[reason] += count

    def _keep(self) -> None:
        now = {name: ring.kept for name, ring in self._rings.items()}
        encoded = msgspec.json.encode(now)
        if encoded == msgspec.json.encode(self._kept):
            return
        try:
            write_whole(self._kept_path, encoded)
        except OSError as error:
            log.warning("cannot write %s: %s; a restart may count some calls twice", self._kept_path, error.strerror)
        self._kept = msgspec.json.decode(encoded, type=dict[str, _Kept])

    # one ring

    def _read(self, ring: _Ring, descriptor: int, *, left: int, gone: bool) -> int:
        """Read on in a ring; return how many records that took."""
        durations_ms: list[float] = []
        failed, dropped, looked, at_end = 0, ring.missed, 0, False
        ring.missed = 0
        while looked < left:
            first = ring.kept.calls + 1
            records = _records(descriptor, first & (_SLOTS - 1), _CHUNK)
            looked += _CHUNK
            numbers = [_number(noted, check) for noted, check in records]
            taken = 0
            for (noted, _), number in zip(records, numbers, strict=True):
                if number != first + taken:
                    break
                taken += 1
                if noted >= probe.FAILED:
                    failed += 1
                else:
                    durations_ms.append(noted / _NS_PER_MS)
            ring.kept.calls += taken
            if taken == _CHUNK:
                continue
            missing, found = first + taken, numbers[taken]
            if found > missing and not (found - missing) % _SLOTS:
                looked += _SLOTS
                # The writer went round: what it wrote over is known by number alone.
                newest = _newest(descriptor)
                oldest = max(newest - _SLOTS, missing)
                dropped += oldest - ring.kept.calls
                ring.kept.calls = oldest
            elif any(numbers[later] == first + later for later in range(taken + 1, _CHUNK)):
                # A place that was claimed and is not written yet, or never will be, by a thread that is no more.
                if ring.hole != missing and not gone:
                    ring.hole = missing
                    break
                dropped += 1
                ring.kept.calls = missing
            else:
                at_end = True
                break
        samples, lost, unreadable, samples_at_end = _samples(ring, descriptor, gone=gone)
        ring.is_done = gone and at_end and samples_at_end
        accumulator = self._accumulator(ring)
        if accumulator is None:
            if durations_ms or failed or dropped:
                self._count_refused("too-many-apps", ring.name, len(durations_ms) + failed + dropped)
        else:
            accumulator.add_calls(ring.name, durations_ms, exceptions=failed, dropped=dropped)
            accumulator.add_samples(samples, dropped=lost, unreadable=unreadable)
        return looked

    def _accumulator(self, ring: _Ring) -> Accumulator | None:
        key = (ring.app, ring.model)
        if key not in self._open and len(self._open) >= MAX_APPS:
            return None
        return self._open.setdefault(key, Accumulator())


def _header(name: str, descriptor: int, inode: int) -> _Ring:
    """Return a ring that was not read yet.

    Raises:
        _NotARing: Its header is not one of a ring.
    """
    head = _whole(os.pread(descriptor, probe.HEADER_BYTES, 0), probe.HEADER_BYTES)
    magic, version, *sizes, _, _, first, missed = probe.HEADER.unpack_from(head)
    if magic != probe.MAGIC:
        raise _NotARing("not-a-ring")
    if version != probe.VERSION or sizes != [probe.RECORD_SLOTS, probe.SAMPLE_SLOTS, probe.SAMPLE_BYTES]:
        raise _NotARing("other-version")
    app, model = (
        part.rstrip(b"\0").decode("ascii", "replace") for part in probe.NAMES.unpack_from(head, probe.NAMES_AT)
    )
    if not probe.NAME.fullmatch(app) or (model and not probe.NAME.fullmatch(model)):
        raise _NotARing("bad-name")
    if not 1 <= first <= _MAX_NUMBER or not 0 <= missed < first:
        raise _NotARing("bad-number")
    kept = _Kept(inode=inode, calls=first - 1, samples=0, unreadable=0)
    return _Ring(name=name, app=app, model=model or None, kept=kept, missed=missed)


def _records(descriptor: int, slot: int, count: int) -> list[tuple[int, int]]:
    """Return `count` records from a slot on, round the ring's end.

    Raises:
        _NotARing: The file was shortened.
    """
    size = probe.RECORD.size
    before_end = min(count, _SLOTS - slot)
    data = os.pread(descriptor, before_end * size, probe.HEADER_BYTES + slot * size)
    if before_end < count:
        data += os.pread(descriptor, (count - before_end) * size, probe.HEADER_BYTES)
    return list(probe.RECORD.iter_unpack(_whole(data, count * size)))


def _number(noted: int, check: int) -> int:
    """Return a record's number, 0 of one that is half written."""
    number = noted ^ check
    return number >> probe.NUMBER_SHIFT if not number & ((1 << probe.NUMBER_SHIFT) - 1) else 0


def _newest(descriptor: int) -> int:
    """Return the highest number in a ring.

    Raises:
        _NotARing: It is none that counting gets to, or the file was shortened.
    """
    numbers = (_number(noted, check) for noted, check in _records(descriptor, 0, _SLOTS))
    newest = max((number for slot, number in enumerate(numbers) if number & (_SLOTS - 1) == slot), default=0)
    if newest > _MAX_NUMBER:
        raise _NotARing("bad-number")
    return newest


def _samples(ring: _Ring, descriptor: int, *, gone: bool) -> tuple[list[Sample], int, int, bool]:
    """Read on in a ring's statistics.

    Returns:
        Samples, how many were written over or are damaged, how many held no numbers, and whether that was all.

    Raises:
        _NotARing: A number is none that counting gets to, or the file was shortened.
    """
    kept = ring.kept
    (told,) = _WORD.unpack(_whole(os.pread(descriptor, _WORD.size, probe.UNREADABLE_AT), _WORD.size))
    unreadable = max(0, min(told, _MAX_NUMBER) - kept.unreadable)
    kept.unreadable += unreadable
    samples: list[Sample] = []
    lost = 0
    for _ in range(2 * probe.SAMPLE_SLOTS):  # each one may be written over, and found so, while it is read
        wanted = kept.samples + 1
        at = probe.SAMPLES_AT + (wanted % probe.SAMPLE_SLOTS) * probe.SAMPLE_BYTES
        slot = _whole(os.pread(descriptor, probe.SAMPLE_BYTES, at), probe.SAMPLE_BYTES)
        (number,) = _WORD.unpack_from(slot)
        if number > _MAX_NUMBER:
            raise _NotARing("bad-number")
        if number < wanted:
            return samples, lost, unreadable, True
        if number > wanted:
            oldest = max(number - probe.SAMPLE_SLOTS, wanted)
            lost += oldest - kept.samples
            kept.samples = oldest
            continue
        body = _body(slot)
        if body is None and ring.torn != wanted and not gone:
            ring.torn = wanted
            return samples, lost, unreadable, False
        kept.samples = wanted
        if body is None:
            lost += 1
            continue
        try:
            samples.append(_sample(body))
        except ValueError:
            unreadable += 1
    return samples, lost, unreadable, False


def _body(slot: bytes) -> bytes | None:
    """Return what a sample says, None where it is half written."""
    _, checksum, size = probe.SAMPLE_FRONT.unpack_from(slot)
    body = slot[probe.SAMPLE_FRONT.size :][:size]
    return body if len(body) == size and zlib.crc32(body) == checksum else None


def _sample(body: bytes) -> Sample:
    """Return a sample.

    Raises:
        ValueError: It is none.
    """
    try:
        _, one_in, inputs, rows, _ = probe.SAMPLE_HEAD.unpack_from(body)
        at = probe.SAMPLE_HEAD.size
        seen = []
        for _ in range(inputs):
            elements, nan, infinite, _, mean, std, low, high = probe.SAMPLE_INPUT.unpack_from(body, at)
            seen.append(InputSample(elements, nan, infinite, mean, std, low, high))
            at += probe.SAMPLE_INPUT.size
        decided = [probe.SAMPLE_ROW.unpack_from(body, at + row * probe.SAMPLE_ROW.size) for row in range(rows)]
    except struct.error as error:
        raise ValueError(str(error)) from None
    return Sample(one_in=one_in, inputs=seen, rows=decided)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise _NotARing("not-a-ring")
    return data


def _is_free(descriptor: int) -> bool:
    """Return whether no process holds a file's lock: its writer is gone, and so are all that it was forked into."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlink(folder: int, name: str) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)


def _read_kept(path: Path) -> dict[str, _Kept]:
    try:
        if path.stat().st_size > _MAX_KEPT_BYTES:
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Kept])
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return {}
