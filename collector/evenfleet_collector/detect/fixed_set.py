"""Decide whether accuracy on a fixed evaluation set is tolerable.

The question is asked of this set alone. A runtime that gives the same answers at every pass has no chance in it, so
there is nothing to estimate: once three passes agreed with the one before, the errors are compared with the
reference's, exactly. Repeating the same outcome adds no evidence, and none is claimed.

Leaves to others whether set and reference are the right ones, and runtimes whose answers keep changing: they stay
`undetermined`, with the number of samples that flipped as the reason.

* Outside takes more excess errors than the margin; exactly the margin is within.
* One, two or three odd passes in a row never flag.
* A flag is cleared by `clear_windows` passes in a row inside the margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta

from evenfleet_collector.detect.betting import BetVerdict

# So much of a digest tells two answers of one device apart, and state is small.
_DIGEST_CHARS: Final = 12

_Counter = Annotated[int, Meta(ge=0, le=2**24)]
_ShortDigest = Annotated[str, Meta(pattern=r"^([0-9a-f]{12})?$(?!\n)")]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSetState:
    """What is remembered of a stream; the default is one that nothing is known of.

    `agreeing` counts passes in a row whose outcome was that of the pass before, `persisting` those whose every
    prediction was; both stop at the number that is asked for. `digest` is the predictions of the last pass, `settled`
    those that last persisted, `first` those that first did (12 hexadecimal digits each).
    """

    agreeing: _Counter = 0
    persisting: _Counter = 0
    inside_run: _Counter = 0
    digest: _ShortDigest = ""
    settled: _ShortDigest = ""
    first: _ShortDigest = ""
    flagged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSetWhy:
    """Why a stream is where it is: outside iff errors − reference_errors − unstable > margin_ratio · n.

    `flagged_now` and `cleared_now` are true at the pass that opens or closes a flag; `predictions_changed_now` at the
    one by which other predictions than before have persisted, which is a drift to report even within the margin.
    """

    rule: Literal["fixed-set-exact"] = "fixed-set-exact"
    verdict: BetVerdict
    reason: str
    flagged_now: bool
    cleared_now: bool
    predictions_changed_now: bool
    n: int
    errors: int
    reference_errors: int
    unstable: int
    margin_ratio: float
    excess_errors: int
    allowed_errors: float
    agreeing_passes: int


def step(
    state: FixedSetState,
    *,
    n: int,
    errors: int,
    hamming: int | None,
    prediction_digest: str,
    reference_errors: int,
    unstable: int,
    margin_ratio: float,
    min_windows: int = 3,
    clear_windows: int = 6,
) -> tuple[FixedSetState, FixedSetWhy]:
    """Judge one more pass over the set.

    Args:
        state: The stream before the pass.
        n: Samples of the set.
        errors: How many this pass got wrong.
        hamming: How many samples' correctness differs from the pass before; None at a runner's first pass, which then
            says something only if it made the very predictions of the pass before.
        prediction_digest: sha256 of the predictions.
        reference_errors: How many the reference got wrong.
        unstable: Samples known to flip between right and wrong on sound devices of the class.
        margin_ratio: The tolerated excess of errors, as a share of the samples.
        min_windows: So many passes in a row must have agreed with the one before.
        clear_windows: So many passes in a row inside the margin clear a flag.

    Raises:
        ValueError: Not 0 <= errors <= n with n >= 1.

    >>> digest = "ab" * 32
    >>> state = FixedSetState()
    >>> for hamming in (None, 0, 0, 0):
    ...     state, why = step(state, n=500, errors=56, hamming=hamming, prediction_digest=digest,
    ...                       reference_errors=50, unstable=0, margin_ratio=0.01)
    >>> why.verdict, why.reason
    ('outside', '6 more errors than the reference (56 against 50 of 500), the margin is 5')
    """
    if not 0 <= errors <= n or not n:
        raise ValueError(f"no share {errors}/{n}")
    digest = prediction_digest[:_DIGEST_CHARS]
    same_predictions = digest == state.digest
    agrees = hamming == 0 or (hamming is None and same_predictions)
    agreeing = min(state.agreeing + 1, min_windows) if agrees else 0
    persisting = min(state.persisting + 1, min_windows) if same_predictions else 0
    persists = persisting >= min_windows
    excess = errors - reference_errors - unstable
    # Rounded, since 0.29 · 100 is a little less than 29.
    allowed = round(margin_ratio * n, 6)
    outside = excess > allowed
    inside_run = 0 if outside else min(state.inside_run + 1, clear_windows)
    cleared = state.flagged and inside_run >= clear_windows
    decided = agreeing >= min_windows
    flagged = (state.flagged and not cleared) or (decided and outside)
    after = FixedSetState(
        agreeing=agreeing,
        persisting=persisting,
        inside_run=inside_run,
        digest=digest,
        settled=digest if persists else state.settled,
        first=state.first or (digest if persists else ""),
        flagged=flagged,
    )
    flipping = f", {unstable} known to flip" if unstable else ""
    compared = (
        f"{abs(excess)} {'more' if excess >= 0 else 'fewer'} errors than the reference ({errors} against "
        f"{reference_errors} of {n}{flipping}), the margin is {allowed:g}"
    )
    notes = [compared]
    if flagged and not outside:
        notes.append(f"flagged until {clear_windows} passes in a row are inside, {inside_run} so far")
    elif not decided and not flagged:
        flips = f"{hamming} samples flipped since the pass before, " if hamming else ""
        notes.append(f"not decided: {flips}{agreeing} of {min_windows} passes in a row agreed with the one before")
    if after.settled != after.first:
        notes.append(f"its predictions changed from {after.first} to {after.settled} and stayed so")
    verdict: BetVerdict = "outside" if flagged else "within" if decided else "undetermined"
    return after, FixedSetWhy(
        verdict=verdict,
        reason="; ".join(notes),
        flagged_now=flagged and not state.flagged,
        cleared_now=cleared,
        predictions_changed_now=persists and bool(state.settled) and digest != state.settled,
        n=n,
        errors=errors,
        reference_errors=reference_errors,
        unstable=unstable,
        margin_ratio=margin_ratio,
        excess_errors=excess,
        allowed_errors=allowed,
        agreeing_passes=agreeing,
    )
