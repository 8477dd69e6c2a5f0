"""What HTTP hands out and takes beside the store's rows: pages, flags with their evidence, bodies of edits.

One definition for both ends: `routes` returns these, `client` decodes them. Imports neither the web stack nor the
client library, so that a command line that only asks one question starts quickly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

import msgspec

from evenfleet_collector.cell import Metric
from evenfleet_collector.store.rows import CellRow, FlagRow, Stats
from evenfleet_shared.messages import CommandName

T = TypeVar("T")

API: Final = "/api/v1"
EVERY_DEVICE: Final = "*"
RELEASE_RULE: Final = "a tag, a release's digest, or at least 4 hexadecimal digits of its start"
TAG_RULE: Final = (
    "1 to 63 lower-case letters, digits, '.', '_' and '-', the first a letter or digit, and not hexadecimal digits alone, "
    "which stand for a digest"
)
# What a release is meant by, and what it may be called: no text is both.
DIGEST_PATTERN: Final = "[0-9a-f]{4,64}"
TAG_PATTERN: Final = "(?![0-9a-f]+$)[a-z0-9][a-z0-9._-]{0,62}"

_DIGEST: Final = re.compile(DIGEST_PATTERN)
_TAG: Final = re.compile(TAG_PATTERN)
# Read by FastAPI's validation: a field that is not known is refused, like a parameter.
_NO_MORE: Final = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list; `next_page_token` asks for the next, none after the last."""

    items: tuple[T, ...]
    next_page_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Cells of one release: devices × variants. No release has been pushed yet where `release` is None."""

    release: str | None
    model: str | None
    items: tuple[CellRow, ...]
    next_page_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A stretch of `outside` on one device × variant × metric; `evidence` is what made it, step by step."""

    id: int
    device: str
    device_class: str
    release: str
    variant: str
    metric: Metric
    reason: str
    opened_s: float
    cleared_s: float | None
    evidence: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How many connections the broker let in and refused since the collector's start, the latter by reason."""

    admitted: int
    denied: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(Stats):
    """The collector in figures: what its store counts, and its broker's door."""

    access: Access


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """Asks for a device to be enrolled."""

    __pydantic_config__: ClassVar[dict[str, str]] = _NO_MORE

    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A device's token, said once and kept only as a hash."""

    device: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCommand:
    """Asks for a command to be sent to a device until it answers, for `ttl_s` at most; no variant stands for all.

    `sustained_s` and `offline_s` are for `measure`, and take so long of the device each.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _NO_MORE

    command: CommandName
    ttl_s: float
    variant: str | None = None
    sustained_s: float = 0.0
    offline_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAssignment:
    """Asks for a release, by its digest, the start of it, or a tag; None for no release at all."""

    __pydantic_config__: ClassVar[dict[str, str]] = _NO_MORE

    release: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The release that a device should run; `device` is ``*`` for those not named."""

    device: str
    release: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTag:
    """Asks for a tag to stand for a release, which is named by its digest, the start of it, or another tag."""

    __pydantic_config__: ClassVar[dict[str, str]] = _NO_MORE

    release: str


def is_digest_start(text: str) -> bool:
    """Return whether `text` may be the start of a release's digest, or all of it.

    >>> is_digest_start("9f2c"), is_digest_start("9f2"), is_digest_start("9F2C"), is_digest_start("")
    (True, False, False, False)
    """
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    r"""Return whether a release may be called `text`: never what could be the start of a digest, however short.

    >>> [is_tag(text) for text in ("prod", "v1.2-rc_1", "2024-06", "beef", "abc", "9", "Prod", ".", "", "prod\n", "x" * 64)]
    [True, True, True, False, False, False, False, False, False, False, False]
    """
    return _TAG.fullmatch(text) is not None


def is_release_name(text: str) -> bool:
    """Return whether `text` may stand for a release.

    >>> is_release_name("9f2c"), is_release_name("9f2"), is_release_name("9F2C"), is_release_name("prod")
    (True, False, False, True)
    """
    return is_digest_start(text) or is_tag(text)


def flag_of(row: FlagRow) -> Flag:
    """Return the flag with its evidence as a JSON value."""
    return Flag(
        id=row.id,
        device=row.device,
        device_class=row.device_class,
        release=row.release,
        variant=row.variant,
        metric=row.metric,
        reason=row.reason,
        opened_s=row.opened_s,
        cleared_s=row.cleared_s,
        evidence=msgspec.json.decode(row.evidence_json) if row.evidence_json else None,
    )
