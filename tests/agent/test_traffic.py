"""The day's budget: whatever the device wants and the broker does, it is not exceeded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.traffic import DAY_S, Allowance

BUDGET = 100_000
BUFFER = 16_384
KEPT = 600


class Day:
    """A device and a broker that sends whatever the kernel takes; counts what went over the socket, day by day."""

    def __init__(self) -> None:
        self.allowance = Allowance(BUDGET)
        self.now_s = 0.0
        self.unread = 0
        self.open = False
        self.days: dict[int, int] = {}

    def connect(self, _: int) -> None:
        if not self.open and self.allowance.may_connect(BUFFER, KEPT, self.now_s):
            self.allowance.opened(BUFFER, KEPT)
            self.open, self.unread = True, 0

    def send(self, size: int, *, last: bool = False) -> None:
        if self.open and self.allowance.may_send(size, self.now_s, last=last):
            self.allowance.spend(size)
            self._count(size)

    def say_last(self, size: int) -> None:
        self.send(min(size, KEPT), last=True)
        self.close(0)

    def flood(self, size: int) -> None:
        """The broker sends as much as the kernel takes, and counts from then on."""
        if self.open:
            taken = min(size, BUFFER - self.unread)
            self.unread += taken
            self._count(taken)

    def read(self, size: int) -> None:
        if self.open:
            allowed = self.allowance.may_receive(self.now_s)
            assert allowed is not None
            read = min(size, self.unread, allowed)
            self.allowance.spend(read)
            self.unread -= read

    def close(self, _: int) -> None:
        if self.open:
            self.allowance.closed(self.unread)
            self.open = False

    def _count(self, size: int) -> None:
        day = int(self.now_s // DAY_S)
        self.days[day] = self.days.get(day, 0) + size


ACTIONS = ("connect", "send", "say_last", "flood", "read", "close")
sizes = st.sampled_from([1, 600, 5000, BUFFER, 40_000]) | st.integers(0, 60_000)
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), sizes), max_size=200).map(lambda some: [("connect", 0), *some])


@given(steps)
def test_budget_is_never_exceeded_within_a_day(actions: list[tuple[str, int]]) -> None:
    day = Day()
    for name, size in actions:
        getattr(day, name)(size)
        assert day.days.get(0, 0) <= BUDGET
        assert day.days.get(0, 0) <= day.allowance.spent_bytes + day.unread


@given(steps)
def test_flooding_broker_leaves_room_for_a_last_word(actions: list[tuple[str, int]]) -> None:
    day = Day()
    for name, size in actions:
        if name != "say_last":
            getattr(day, name)(size)
    assert not day.open or day.allowance.may_send(KEPT, day.now_s, last=True)


def test_greedy_device_and_flooding_broker_together_stop_at_the_budget_with_the_last_word_said() -> None:
    day = Day()
    for _ in range(1000):
        day.connect(0)
        day.flood(BUFFER)
        day.read(3000)
        day.send(700)
        day.send(1)
    assert day.open
    before = day.days[0]
    day.say_last(KEPT)
    assert day.days[0] == before + KEPT
    assert BUDGET - 3000 < day.days[0] <= BUDGET


def test_new_day_has_a_whole_budget_again_and_begins_on_time() -> None:
    allowance = Allowance(BUDGET, now_s=1000.0, age_s=3600.0, spent_bytes=BUDGET)
    assert not allowance.may_send(1, 1000.0)
    assert allowance.next_day_in_s(1000.0) == DAY_S - 3600.0
    assert not allowance.may_send(1, 1000.0 + DAY_S - 3601.0)
    assert allowance.may_send(BUDGET, 1000.0 + DAY_S - 3600.0)


def test_days_that_nobody_looked_at_bring_one_budget_and_not_several() -> None:
    allowance = Allowance(BUDGET)
    allowance.spend(BUDGET)
    assert allowance.may_send(BUDGET, 5.5 * DAY_S)
    assert not allowance.may_send(BUDGET + 1, 5.5 * DAY_S)
    assert allowance.next_day_in_s(5.5 * DAY_S) == 0.5 * DAY_S


def test_without_a_budget_everything_is_allowed() -> None:
    allowance = Allowance(None)
    allowance.spend(10**12)
    assert allowance.may_send(10**12, 0.0)
    assert allowance.may_receive(0.0) is None
    assert allowance.may_connect(BUFFER, KEPT, 0.0)
