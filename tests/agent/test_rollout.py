"""The table of a release's life on a device: complete, and never doing two things at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evenfleet_agent import rollout
from evenfleet_agent.rollout import (
    EVENTS,
    IMPOSSIBLE,
    MAX_WRONG,
    PHASES,
    RETRY_MAX_S,
    TABLE,
    WRONG_FIRST_S,
    WRONG_WINDOW_S,
    Action,
    Event,
    Fetched,
    FetchFailed,
    Offer,
    Offered,
    Report,
    RetryDue,
    Rollout,
    StartFetch,
    StartRunners,
    StopFetch,
    StopRunners,
    Switch,
    Vanished,
    Withdrawn,
    step,
)
from evenfleet_shared.messages import ReleaseSignature

ONE = Offer("1" * 64, ("float32",))
TWO = Offer("2" * 64, ("float32", "int8"))
ONE_MORE_VARIANT = Offer("1" * 64, ("float32", "int8"))
FINAL = FetchFailed("no manifest", "release")
TRANSIENT = FetchFailed("no route", "link")
WRONG = FetchFailed("digest", "content")


def after(*events: Event, state: Rollout | None = None) -> tuple[Rollout, tuple[Action, ...]]:
    state = state or Rollout()
    actions: tuple[Action, ...] = ()
    for event in events:
        state, actions = step(state, event, 100.0)
    return state, actions


def test_every_pair_is_in_the_table_or_impossible_and_not_in_both() -> None:
    pairs = {(phase, event) for phase in PHASES for event in EVENTS}

    assert set(TABLE) | set(IMPOSSIBLE) == pairs
    assert not set(TABLE) & set(IMPOSSIBLE)


@pytest.mark.parametrize(("phase", "event"), sorted(IMPOSSIBLE, key=str))
def test_what_cannot_happen_is_a_programming_mistake(phase: rollout.Phase, event: type[Event]) -> None:
    happened = FetchFailed("x", "release") if event is FetchFailed else event()  # type: ignore[call-arg]

    with pytest.raises(ValueError, match=f"cannot happen while {phase}"):
        step(Rollout(phase=phase, running=ONE if phase == "running" else None), happened, 0.0)


def test_an_offer_is_fetched_then_switched_to_then_run_then_told() -> None:
    state, actions = after(Offered(ONE))
    assert (state.phase, actions) == ("fetching", (StartFetch(ONE),))

    state, actions = after(Fetched(), state=state)
    assert state == Rollout(phase="running", running=ONE)
    assert actions == (Switch(), StartRunners(ONE), Report("release-installed", ONE.release, ""))


def test_the_running_release_goes_on_until_the_next_one_is_whole() -> None:
    state, actions = after(Offered(ONE), Fetched(), Offered(TWO))
    assert (state.phase, state.running, actions) == ("updating", ONE, (StartFetch(TWO),))

    state, actions = after(Fetched(), state=state)
    assert actions[:3] == (StopRunners(), Switch(), StartRunners(TWO))


def test_what_runs_or_is_under_way_already_is_not_fetched_again() -> None:
    assert after(Offered(ONE), Fetched(), Offered(ONE))[1] == ()
    assert after(Offered(ONE), Offered(ONE))[1] == ()
    assert after(Offered(ONE), TRANSIENT, Offered(ONE))[1] == ()


def test_another_variant_of_the_running_release_is_fetched() -> None:
    state, actions = after(Offered(ONE), Fetched(), Offered(ONE_MORE_VARIANT))

    assert (state.phase, actions) == ("updating", (StartFetch(ONE_MORE_VARIANT),))


def test_an_offer_during_a_download_leaves_it_for_the_new_one() -> None:
    assert after(Offered(ONE), Offered(TWO))[1] == (StopFetch(), StartFetch(TWO))


def test_going_back_to_what_runs_only_stops_the_download() -> None:
    state, actions = after(Offered(ONE), Fetched(), Offered(TWO), Offered(ONE))

    assert (state, actions) == (Rollout(phase="running", running=ONE), (StopFetch(),))


def test_a_release_that_cannot_be_used_is_told_and_not_fetched_again() -> None:
    state, actions = after(Offered(ONE), FINAL)
    assert (state.phase, actions) == ("empty", (Report("release-refused", ONE.release, "no manifest"),))

    assert after(Offered(ONE), state=state) == (state, ())
    assert after(Offered(ONE_MORE_VARIANT), state=state) == (state, ())


def test_a_refused_update_leaves_the_running_release_alone() -> None:
    state, actions = after(Offered(ONE), Fetched(), Offered(TWO), FINAL)

    assert (state.phase, state.running, state.refused) == ("running", ONE, TWO)
    assert actions == (Report("release-refused", TWO.release, "no manifest"),)
    assert after(Offered(TWO), state=state)[1] == ()


def test_a_signature_that_comes_later_changes_nothing_of_what_runs() -> None:
    signed = replace(ONE, signatures=(ReleaseSignature(key="a" * 64, signature="c2ln"),))
    state, _ = after(Offered(ONE), Fetched())

    assert after(Offered(signed), state=state) == (state, ())
    assert after(Offered(TWO), Offered(signed), state=state)[1] == (StopFetch(),)


def test_a_refused_release_is_tried_again_when_it_comes_with_another_signature() -> None:
    unsigned = FetchFailed("not signed", "release")
    state, _ = after(Offered(ONE), unsigned)
    signed = replace(ONE, signatures=(ReleaseSignature(key="a" * 64, signature="c2ln"),))

    assert after(Offered(ONE), state=state)[1] == ()
    assert after(Offered(signed), state=state)[1] == (StartFetch(signed),)


def test_a_refused_release_is_tried_again_after_another_one_was_offered() -> None:
    state, _ = after(Offered(ONE), FINAL, Offered(TWO), Fetched())

    assert after(Offered(ONE), state=state)[1] == (StartFetch(ONE),)


def test_a_failed_download_is_tried_again_after_a_pause_that_doubles_to_five_minutes() -> None:
    state, _ = after(Offered(ONE))
    pauses = []
    for _ in range(12):
        state, actions = step(state, TRANSIENT, 100.0)
        assert actions == ()
        assert state.retry_s is not None
        pauses.append(state.retry_s - 100.0)
        state, actions = step(state, RetryDue(), state.retry_s)
        assert (actions, state.retry_s) == ((StartFetch(ONE),), None)

    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]


def test_a_year_of_failures_is_no_overflow() -> None:
    state, _ = after(Offered(ONE))
    for _ in range(5000):
        state, _ = after(TRANSIENT, RetryDue(), state=state)

    assert after(TRANSIENT, state=state)[0].retry_s == 100.0 + RETRY_MAX_S


def test_something_else_in_the_place_of_a_release_is_held_against_it_the_fifth_time_after_a_quarter_of_an_hour() -> (
    None
):
    """A hotel's login page comes with status 200, and goes away."""
    state, _ = after(Offered(ONE))
    now_s = 0.0
    for _ in range(4):
        state, actions = step(state, WRONG, now_s)
        assert (state.phase, actions) == ("fetching", ())
        assert state.retry_s is not None
        now_s = state.retry_s
        state, _ = step(state, RetryDue(), now_s)
    state, actions = step(state, WRONG, now_s)

    assert now_s == 900.0
    assert (state.phase, state.refused) == ("empty", ONE)
    assert actions == (Report("release-refused", ONE.release, "digest, 5 times"),)


def test_a_link_that_fails_in_between_begins_the_count_of_wrong_contents_anew() -> None:
    state, _ = after(Offered(ONE), *([WRONG, RetryDue()] * 4), TRANSIENT, RetryDue(), *([WRONG, RetryDue()] * 4))
    assert state.phase == "fetching"

    assert after(WRONG, state=state)[0].refused == ONE


def test_a_login_page_a_day_never_refuses_a_release() -> None:
    state, _ = after(Offered(ONE))
    for day in range(30):
        state, actions = step(state, WRONG, day * 86_400.0)
        assert (state.phase, actions, state.retry_s) == ("fetching", (), day * 86_400.0 + WRONG_FIRST_S)
        state, _ = step(state, RetryDue(), day * 86_400.0 + WRONG_FIRST_S)


def test_wrong_contents_that_take_an_hour_each_to_come_are_held_against_the_release() -> None:
    state, _ = after(Offered(ONE))
    now_s = 0.0
    for _ in range(4):
        now_s += 3600.0
        state, _ = step(state, WRONG, now_s)
        assert state.retry_s is not None
        now_s = state.retry_s
        state, _ = step(state, RetryDue(), now_s)

    assert step(state, WRONG, now_s + 3600.0)[0].refused == ONE


def test_wrong_contents_over_a_longer_time_than_the_window_begin_a_new_count() -> None:
    four_times = after(Offered(ONE), *([WRONG, RetryDue()] * 4))[0]

    assert step(four_times, WRONG, 100.0 + WRONG_WINDOW_S)[0].refused == ONE
    assert step(four_times, WRONG, 101.0 + WRONG_WINDOW_S)[0].refused is None


def test_another_offer_begins_with_a_clean_slate() -> None:
    wrong_four_times = after(Offered(ONE), *([WRONG, RetryDue()] * 4))[0]
    state, _ = after(Offered(TWO), *([WRONG, RetryDue()] * 4), state=wrong_four_times)

    assert (state.phase, state.refused) == ("fetching", None)


def test_a_running_release_that_has_gone_from_the_disk_is_fetched_again() -> None:
    state, actions = after(Offered(ONE), Fetched(), Vanished())

    assert (state.phase, state.running, state.target) == ("fetching", None, ONE)
    assert actions == (StopRunners(), StartFetch(ONE))


def test_a_release_that_has_gone_while_the_next_one_comes_is_not_fetched_again() -> None:
    state, actions = after(Offered(ONE), Fetched(), Offered(TWO), TRANSIENT, Vanished())

    assert (state.phase, state.running, state.target, actions) == ("fetching", None, TWO, (StopRunners(),))
    assert state.retry_s == 101.0


def test_a_withdrawal_ends_everything() -> None:
    assert after(Withdrawn()) == (Rollout(), ())
    assert after(Offered(ONE), Withdrawn()) == (Rollout(), (StopFetch(),))
    assert after(Offered(ONE), Fetched(), Withdrawn()) == (Rollout(), (StopRunners(),))
    assert after(Offered(ONE), Fetched(), Offered(TWO), Withdrawn()) == (Rollout(), (StopFetch(), StopRunners()))


class Walk(RuleBasedStateMachine):
    """A supervisor that performs every action, and reports what can happen: whatever the order, its books are right."""

    @initialize()
    def begin(self) -> None:
        self.state = Rollout()
        self.fetching: Offer | None = None
        self.idle: Offer | None = None
        self.current: Offer | None = None
        self.running: Offer | None = None
        self.refused: str | None = None
        self.now_s = 0.0

    @rule(offer=st.sampled_from([ONE, TWO, ONE_MORE_VARIANT]))
    def offered(self, offer: Offer) -> None:
        if offer.release != self.refused:
            self.refused = None
        self.happens(Offered(offer))

    @rule()
    def withdrawn(self) -> None:
        self.refused = None
        self.happens(Withdrawn())

    @precondition(lambda self: self.fetching)
    @rule()
    def fetched(self) -> None:
        self.idle, self.fetching = self.fetching, None
        self.happens(Fetched())

    @precondition(lambda self: self.fetching)
    @rule(failure=st.sampled_from([FINAL, TRANSIENT, WRONG]))
    def failed(self, failure: FetchFailed) -> None:
        assert self.fetching is not None
        if failure == FINAL or (failure == WRONG and self.state.wrong == MAX_WRONG - 1):
            self.refused = self.fetching.release
        self.fetching = None
        self.happens(failure)

    @precondition(lambda self: self.state.retry_s is not None)
    @rule()
    def retried(self) -> None:
        self.happens(RetryDue())

    @precondition(lambda self: self.running)
    @rule()
    def vanished(self) -> None:
        self.current = None
        # What ran is fetched again, though more of the same release was refused.
        self.refused = None
        self.happens(Vanished())

    @rule()
    def restarted(self) -> None:
        self.fetching = self.refused = None
        self.state = rollout.resumed(self.current)
        self.running = self.current

    def happens(self, event: Event) -> None:
        self.now_s += 1
        self.state, actions = step(self.state, event, self.now_s)
        for action in actions:
            self.perform(action)

    def perform(self, action: Action) -> None:
        if isinstance(action, StartFetch):
            assert self.fetching is None
            assert action.offer.release != self.refused
            self.fetching, self.idle = action.offer, None
        elif isinstance(action, StopFetch):
            self.fetching = None
        elif isinstance(action, Switch):
            assert self.idle is not None
            assert self.running is None
            self.current, self.idle = self.idle, self.current
        elif isinstance(action, StartRunners):
            assert self.running is None
            assert action.offer == self.current
            self.running = action.offer
        elif isinstance(action, StopRunners):
            assert self.running is not None
            self.running = None

    @invariant()
    def the_state_is_what_is_going_on(self) -> None:
        if not hasattr(self, "state"):
            return
        state = self.state
        assert state.running == self.running
        assert (state.phase in ("fetching", "updating")) == (state.target is not None)
        assert (state.phase in ("running", "updating")) == (state.running is not None)
        # What is wanted is under way, or is waited for.
        assert (state.target is not None) == (self.fetching is not None or state.retry_s is not None)
        assert not (self.fetching and state.retry_s is not None)


Walk.TestCase.settings = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
TestWalk = Walk.TestCase
