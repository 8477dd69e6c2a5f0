"""What is said of the way to the broker is what was seen of it."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.link.figures import Figures
from evenfleet_shared.messages import Network


def test_nothing_seen_is_not_zero() -> None:
    assert Figures().take(10.0) == Network(round_trips=0)


def test_round_trips_loss_and_bytes_are_of_the_time_since_the_last_question() -> None:
    figures = Figures()
    figures.began()
    for number in range(4):
        figures.published(10.0 + number)
    for number, took_s in enumerate((0.1, 0.2, 0.9)):
        figures.acknowledged(1000, 10.0 + number, 10.0 + number + took_s)
    figures.lost(1, 14.0)
    figures.carried(5000, 300)
    said = figures.take(20.0)
    assert (said.round_trips, said.sessions, said.sent_bytes, said.received_bytes) == (3, 1, 5000, 300)
    assert said.rtt_p50_ms is not None
    assert round(said.rtt_p50_ms) == 200
    assert said.rtt_max_ms is not None
    assert round(said.rtt_max_ms) == 900
    assert said.unacknowledged_ratio == 0.25
    assert said.throughput_bytes_per_s == 750.0  # 3,000 bytes in the 4 s in which something was under way
    assert figures.take(30.0) == Network(round_trips=0)


def test_message_under_way_over_a_question_counts_in_the_next_answer() -> None:
    figures = Figures()
    figures.published(0.0)
    assert figures.take(5.0).unacknowledged_ratio is None
    figures.acknowledged(100, 0.0, 6.0)
    said = figures.take(10.0)
    assert said.unacknowledged_ratio == 0.0
    assert said.throughput_bytes_per_s == 100.0


def test_refused_message_took_its_way_and_did_not_arrive() -> None:
    figures = Figures()
    figures.published(0.0)
    figures.acknowledged(100, 0.0, 1.0, taken=False)
    said = figures.take(2.0)
    assert (said.round_trips, said.unacknowledged_ratio, said.throughput_bytes_per_s) == (1, 1.0, None)


@given(st.lists(st.tuples(st.sampled_from(["published", "acknowledged", "lost", "take"]), st.floats(0.0, 1e4))))
def test_whatever_happens_is_a_message_of_its_type(steps: list[tuple[str, float]]) -> None:
    figures, now_s = Figures(), 0.0
    for name, passed_s in steps:
        now_s += passed_s
        if name == "published":
            figures.published(now_s)
        elif name == "acknowledged":
            figures.acknowledged(1000, now_s - passed_s, now_s)
        elif name == "lost":
            figures.lost(1, now_s)
        else:
            msgspec.convert(msgspec.to_builtins(figures.take(now_s)), Network)
