"""Decide what a device does with a release that it is told to run.

Pure. `step` takes the state and one event and returns the next state and the actions to perform. `supervisor`
performs them and reports back as events, so a power cut between any two actions is just a missing event.

* The running release goes on until the next one is whole on disk.
* A release that cannot be run (`FetchFailed.cause`) is refused until another one is offered. What came in its place is
  held against it only when it came `MAX_WRONG` times in a row within `WRONG_WINDOW_S`: a hotel's login page or a proxy's
  error page comes with status 200 too. A failing link in between, or a longer time, and the count begins anew.
* Every pair of phase and event is in `TABLE` or in `IMPOSSIBLE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, Union

from evenfleet_shared.messages import ReleaseSignature

Phase = Literal["empty", "fetching", "running", "updating"]
PHASES: Final[tuple[Phase, ...]] = ("empty", "fetching", "running", "updating")

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 300.0
WRONG_FIRST_S: Final = 60.0
MAX_WRONG: Final = 5
# From the first to the last: a quarter of an hour of pauses, and five downloads of which each may take an hour. A login
# page a day is none of the release's doing.
WRONG_WINDOW_S: Final = 6 * 3600.0

# Why a release is not here: `link`, the network, the server or the disk failed; `content`, something came that is not what
# was asked for, perhaps from somebody in between; `release`, it is what was asked for and cannot be run.
Cause = Literal["link", "content", "release"]


@dataclass(frozen=True, slots=True)
class Offer:
    """A release and the variants of it to run, with the signatures that it is offered with."""

    release: str
    variants: tuple[str, ...]
    signatures: tuple[ReleaseSignature, ...] = ()

    def is_same_run(self, other: Offer | None) -> bool:
        """Return whether the same is to run: who has signed it changes nothing of what runs."""
        return other is not None and (self.release, self.variants) == (other.release, other.variants)


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where a device stands: what runs, what is being fetched, and when to try again.

    `wrong` counts what came in the target's place, in a row; the first of it came at `wrong_since_s`.
    """

    phase: Phase = "empty"
    running: Offer | None = None
    target: Offer | None = None
    refused: Offer | None = None
    failures: int = 0
    wrong: int = 0
    wrong_since_s: float = 0.0
    retry_s: float | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """The collector wants this to run."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The collector wants nothing to run."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The target is whole in the idle slot."""


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """The target is not there."""

    reason: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class RetryDue:
    """It is time to try again."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """The running release is no longer whole on disk."""


Event = Union[Offered, Withdrawn, Fetched, FetchFailed, RetryDue, Vanished]
EVENTS: Final[tuple[type[Event], ...]] = (Offered, Withdrawn, Fetched, FetchFailed, RetryDue, Vanished)


@dataclass(frozen=True, slots=True)
class StartFetch:
    """Download into the idle slot."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class StopFetch:
    """Give up the download under way; what is there stays."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Make the idle slot the running one."""


@dataclass(frozen=True, slots=True)
class StartRunners:
    """Load the variants from the running slot."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class StopRunners:
    """End every runner."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the collector."""

    event: Literal["release-installed", "release-refused"]
    release: str
    detail: str


Action = Union[StartFetch, StopFetch, Switch, StartRunners, StopRunners, Report]
Step = tuple[Rollout, tuple[Action, ...]]


def step(state: Rollout, event: Event, now_s: float) -> Step:
    """Return what follows from an event.

    Args:
        state: Where the device stands.
        event: What happened.
        now_s: Monotonic seconds.

    Raises:
        ValueError: The pair is in `IMPOSSIBLE`; the caller has lost count of its downloads.
    """
    rule = TABLE.get((state.phase, type(event)))
    if rule is None:
        raise ValueError(f"{type(event).__name__} cannot happen while {state.phase}")
    return rule(state, event, now_s)


def resumed(running: Offer | None) -> Rollout:
    """Return where a device stands after a start, given what its running slot holds."""
    return Rollout(phase="running", running=running) if running else Rollout()


def _fetch(state: Rollout, event: Event, now_s: float) -> Step:
    """Fetch what is offered, unless it is the digest that was refused, with the same signatures."""
    assert isinstance(event, Offered)
    refused = state.refused
    if refused and (refused.release, refused.signatures) == (event.offer.release, event.offer.signatures):
        return state, ()
    phase: Phase = "updating" if state.running else "fetching"
    return Rollout(phase=phase, running=state.running, target=event.offer), (StartFetch(event.offer),)


def _fetch_other(state: Rollout, event: Event, now_s: float) -> Step:
    """Leave the download under way for what is offered now; go back where the running release is offered again."""
    assert isinstance(event, Offered)
    if event.offer == state.target:
        return state, ()
    if event.offer.is_same_run(state.running):
        return resumed(state.running), (StopFetch(),)
    after, actions = _fetch(state, event, now_s)
    return (after, (StopFetch(), *actions)) if actions else (state, ())


def _keep_or_update(state: Rollout, event: Event, now_s: float) -> Step:
    assert isinstance(event, Offered)
    return (state, ()) if event.offer.is_same_run(state.running) else _fetch(state, event, now_s)


def _install(state: Rollout, event: Event, now_s: float) -> Step:
    assert state.target is not None
    stop = (StopRunners(),) if state.running else ()
    report = Report("release-installed", state.target.release, "")
    return resumed(state.target), (*stop, Switch(), StartRunners(state.target), report)


def _fail(state: Rollout, event: Event, now_s: float) -> Step:
    """Refuse for good, or wait twice as long as the last time and try again."""
    assert isinstance(event, FetchFailed)
    assert state.target is not None
    if event.cause == "link":
        wait_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2**state.failures)
        return replace(state, failures=min(state.failures + 1, 30), wrong=0, retry_s=now_s + wait_s), ()
    goes_on = state.wrong > 0 and now_s - state.wrong_since_s <= WRONG_WINDOW_S
    wrong, since_s = (state.wrong + 1, state.wrong_since_s) if goes_on else (1, now_s)
    if event.cause == "release" or wrong >= MAX_WRONG:
        times = f", {wrong} times" if event.cause == "content" else ""
        refused = replace(resumed(state.running), refused=state.target)
        return refused, (Report("release-refused", state.target.release, f"{event.reason}{times}"),)
    wait_s = WRONG_FIRST_S * 2 ** (wrong - 1)
    return replace(state, wrong=wrong, wrong_since_s=since_s, retry_s=now_s + wait_s), ()


def _retry(state: Rollout, event: Event, now_s: float) -> Step:
    assert state.target is not None
    return replace(state, retry_s=None), (StartFetch(state.target),)


def _fetch_again(state: Rollout, event: Event, now_s: float) -> Step:
    """Fetch what ran; where another release is on its way, wait for that one."""
    if state.target is not None:
        return replace(state, phase="fetching", running=None), (StopRunners(),)
    assert state.running is not None
    return Rollout(phase="fetching", target=state.running), (StopRunners(), StartFetch(state.running))


def _clear(state: Rollout, event: Event, now_s: float) -> Step:
    stop_fetch = (StopFetch(),) if state.target else ()
    stop_runners = (StopRunners(),) if state.running else ()
    return Rollout(), (*stop_fetch, *stop_runners)


TABLE: Final[dict[tuple[Phase, type[Event]], Callable[[Rollout, Event, float], Step]]] = {
    ("empty", Offered): _fetch,
    ("empty", Withdrawn): _clear,
    ("fetching", Offered): _fetch_other,
    ("fetching", Withdrawn): _clear,
    ("fetching", Fetched): _install,
    ("fetching", FetchFailed): _fail,
    ("fetching", RetryDue): _retry,
    ("running", Offered): _keep_or_update,
    ("running", Withdrawn): _clear,
    ("running", Vanished): _fetch_again,
    ("updating", Offered): _fetch_other,
    ("updating", Withdrawn): _clear,
    ("updating", Fetched): _install,
    ("updating", FetchFailed): _fail,
    ("updating", RetryDue): _retry,
    ("updating", Vanished): _fetch_again,
}

# Nothing is being fetched in the first two of these phases, and nothing runs in the others.
IMPOSSIBLE: Final = frozenset(
    [(phase, event) for phase in ("empty", "running") for event in (Fetched, FetchFailed, RetryDue)]
    + [(phase, Vanished) for phase in ("empty", "fetching")]
)
