"""A fleet that lost its broker comes back spread over time."""

from __future__ import annotations

import random
from collections import Counter

from evenfleet_agent.link.pace import CAP_S, ReadPace, failures_after, reconnect_pause_s


def test_thousand_agents_whose_broker_is_gone_for_a_while_never_come_in_a_crowd() -> None:
    """Each tries until the broker is back after two minutes: how many come within any one second is counted."""
    fleet = random.Random(7)
    came_s: list[float] = []
    tries: Counter[int] = Counter()
    for _ in range(1000):
        now_s, failures = 0.0, 0
        while True:
            now_s += reconnect_pause_s(failures, fleet.random())
            if now_s >= 120.0:
                came_s.append(now_s)
                break
            tries[int(now_s)] += 1
            failures = failures_after(failures, None)
    back = Counter(int(at) for at in came_s)
    assert max(back.values()) < 60  # in step it would be 1,000; evenly over the pause, 17
    assert max(came_s) <= 120.0 + CAP_S
    assert max(count for second, count in tries.items() if second >= 30) < 100


def test_pause_is_anything_from_nothing_to_its_bound() -> None:
    pauses_s = [reconnect_pause_s(5, number / 1000) for number in range(1001)]
    assert (pauses_s[0], pauses_s[-1]) == (0.0, 32.0)
    assert pauses_s == sorted(pauses_s)


def test_sessions_that_do_not_last_count_as_failures_and_one_that_lasts_begins_anew() -> None:
    assert failures_after(3, 29.0) == 4
    assert failures_after(3, None) == 4
    assert failures_after(3, 31.0) == 0


def test_reading_is_held_up_only_while_there_is_too_much() -> None:
    pace = ReadPace(0.0)
    assert pace.pause_s(200_000, 0.0) == 0.0
    assert pace.pause_s(1_000_000, 0.1) > 4.0
    assert pace.pause_s(0, 10.0) == 0.0
