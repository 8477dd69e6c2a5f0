"""Questions that the store answers, also while it is written to: what routes and the dashboard see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from evenfleet_collector.store.rows import (
    AppWindowRow,
    CellRow,
    CommandRow,
    DeadLetterRow,
    DeviceRow,
    EventRow,
    FlagRow,
    LossRow,
    ReleaseRow,
    Stats,
    SummaryRow,
    TagMoveRow,
    TagRow,
    WindowRow,
)
from evenfleet_collector.tolerance import Policy


class Reader(Protocol):
    """Answers questions; never waits for a writer."""

    def devices(self, *, after: str = "", limit: int = 100) -> Sequence[DeviceRow]:
        """Return devices by id, from the one behind `after`."""
        ...

    def device(self, device: str) -> DeviceRow | None:
        """Return one device."""
        ...

    def asleep(self, since_s: float) -> frozenset[str]:
        """Return the devices whose last word is that they sleep, said since then."""
        ...

    def windows(
        self,
        device: str,
        *,
        variant: str | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[WindowRow]:
        """Return a device's windows in the log's order, from the one behind `after`, received in [start_s, end_s)."""
        ...

    def summaries(self, device: str, *, after: int = 0, limit: int = 100) -> Sequence[SummaryRow]:
        """Return what is left of windows that gave way on a device, in the order it came."""
        ...

    def app_windows(
        self,
        device: str,
        *,
        app: str | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[AppWindowRow]:
        """Return the windows of a device's applications, as `windows` does."""
        ...

    def newest_app_windows(self, device: str) -> Sequence[AppWindowRow]:
        """Return the window that came last of each application and model of a device, by these names."""
        ...

    def cells(
        self, *, release: str | None = None, device: str | None = None, after_version: int = 0
    ) -> Sequence[CellRow]:
        """Return the cells of a release (or of all), each changed since `after_version`, by device and variant."""
        ...

    def last_version(self) -> int:
        """Return the version of the cell that changed last; 0 where there is none."""
        ...

    def flags(
        self, *, device: str | None = None, only_open: bool = True, after: int = 0, limit: int = 100
    ) -> Sequence[FlagRow]:
        """Return flags by id."""
        ...

    def flag(self, flag_id: int) -> FlagRow | None:
        """Return one flag."""
        ...

    def releases(self) -> Sequence[ReleaseRow]:
        """Return every release, the newest first."""
        ...

    def release(self, name: str) -> ReleaseRow | None:
        """Return the release that is tagged `name`, or whose digest starts so where exactly one does."""
        ...

    def tags(self) -> Sequence[TagRow]:
        """Return every tag, by name."""
        ...

    def tag(self, tag: str) -> TagRow | None:
        """Return one tag."""
        ...

    def tag_moves(self, tag: str) -> Sequence[TagMoveRow]:
        """Return what became of a tag since it was first given, in that order."""
        ...

    def events(
        self, device: str, *, after: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Sequence[EventRow]:
        """Return what a device reported from the one behind `after` (0: the first), in the log's order or against it."""
        ...

    def commands(self, device: str, *, after: int = 0, limit: int = 100) -> Sequence[CommandRow]:
        """Return what a device was told to do, in that order, from the one behind `after`."""
        ...

    def command(self, device: str, correlation_id: str) -> CommandRow | None:
        """Return one command."""
        ...

    def losses(self, device: str) -> Sequence[LossRow]:
        """Return the numbers of a device that will never come."""
        ...

    def dead_letters(self, *, after: int = 0, limit: int = 100) -> Sequence[DeadLetterRow]:
        """Return what could not be taken, in the order it came."""
        ...

    def policy(self) -> Policy:
        """Return the policy in force."""
        ...

    def assignments(self) -> Mapping[str, str | None]:
        """Return the release of each device, ``*`` for those not named."""
        ...

    def credential(self, device: str) -> str | None:
        """Return the hash of a device's token, None where it is not enrolled."""
        ...

    def lag(self) -> int:
        """Return how many windows wait to be judged."""
        ...

    def stats(self) -> Stats:
        """Return the collector in figures."""
        ...
